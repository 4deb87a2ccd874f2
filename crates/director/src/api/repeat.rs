//! How a token that was made under an idempotency key is answered again although its secret is kept
//! nowhere: the secret is derived from that of the token it was asked with, and from a salt which
//! stands in the kept answer in the secret's stead. Keys themselves are `gate`'s business.

use crate::auth::{SECRET_LENGTH, random_secret, sha256_hex};
use conpaas_model::ids::TokenId;

/// What stands before the salt in a kept answer. No secret holds it, as they are hexadecimal.
const MARK: &str = "salt~";

/// Makes secrets that only the holder of one token can have made again.
pub(super) struct TokenSecrets {
    /// The token that requests are made with.
    pub(super) token: TokenId,
    own: String,
}

/// The secret that a new token is to have.
#[derive(Clone)]
pub(super) struct TokenSecret {
    pub(super) secret: String,
    salt: String,
}

impl TokenSecrets {
    pub(super) fn of(token: &TokenId, text: &str) -> Self {
        Self {
            token: token.clone(),
            own: text.to_owned(),
        }
    }

    /// A secret for a new token.
    pub(super) fn next(&self) -> TokenSecret {
        let salt = random_secret();
        TokenSecret {
            secret: self.derived(&salt),
            salt,
        }
    }

    fn derived(&self, salt: &str) -> String {
        let hash = sha256_hex(format!("conpaas repeated token\n{}\n{salt}", self.own));
        hash.chars().take(SECRET_LENGTH).collect()
    }

    /// A kept answer as it was given the first time.
    pub(super) fn put_back(&self, answer: String) -> String {
        let Some((before, rest)) = answer.split_once(MARK) else {
            return answer;
        };
        let Some((salt, after)) = rest.split_at_checked(SECRET_LENGTH) else {
            return answer;
        };
        format!("{before}{}{after}", self.derived(salt))
    }
}

impl TokenSecret {
    /// An answer as it may be kept.
    pub(super) fn take_out(&self, answer: &str) -> String {
        answer.replace(&self.secret, &format!("{MARK}{}", self.salt))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_token_gets_the_same_secret_again() {
        let token: TokenId = crate::store::new_id(TokenId::from_suffix).unwrap();
        let secrets = TokenSecrets::of(&token, "cps_a_b");
        let given = secrets.next();
        let answer = format!("{{\"secret\":\"cps_x_{}\",\"id\":1}}", given.secret);
        let kept = given.take_out(&answer);
        assert!(!kept.contains(&given.secret), "{kept}");
        assert_eq!(secrets.put_back(kept.clone()), answer);
        assert_ne!(TokenSecrets::of(&token, "cps_a_c").put_back(kept), answer);
        assert_eq!(secrets.put_back("{}".to_owned()), "{}");
    }
}
