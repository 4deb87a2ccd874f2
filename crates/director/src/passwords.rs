//! Hashing and checking passwords, the one place where that is done: few at a time, few waiting,
//! in memory that is used again. Who may try how often is `auth`'s brake.

use crate::auth::random_secret;
use crate::error::DirectorError;
use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;

/// Passwords worked on at once, each in 19 MiB of its own.
const AT_ONCE: usize = 2;
/// How many more may wait for their turn, a few seconds at most: a large class that logs in at one
/// moment. Whoever comes then is sent away.
const WAITING: usize = 256;
/// Seconds after which those who were sent away may try again: the queue takes about as long.
const TRY_AGAIN_AFTER: u32 = 5;

/// Hashes and checks passwords beside the async runtime. Clones share everything.
#[derive(Clone)]
pub struct Passwords {
    /// Held from arrival to end.
    places: Arc<Semaphore>,
    /// Held while one is worked on.
    turns: Arc<Semaphore>,
    /// Memory that is not in use: never more pieces than turns. It is kept, for what is allocated
    /// anew on ever other threads does not come back from the allocator.
    memory: Arc<Mutex<Vec<Vec<Block>>>>,
}

impl Default for Passwords {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(AT_ONCE + WAITING)),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            memory: Arc::default(),
        }
    }
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> DirectorError {
    DirectorError::internal("a password could not be worked on", error)
}

fn broken(error: impl std::fmt::Display) -> DirectorError {
    DirectorError::internal("a password's record is broken", error.to_string())
}

/// The hash of a password, computed in `memory`, which grows to what the settings ask for.
fn derive(
    argon: &Argon2<'_>,
    password: &str,
    salt: &[u8],
    memory: &mut Vec<Block>,
) -> Result<Output, DirectorError> {
    let params = argon.params();
    if memory.len() < params.block_count() {
        memory.resize(params.block_count(), Block::new());
    }
    let mut out = [0; Output::MAX_LENGTH];
    let length = params.output_len().unwrap_or(Params::DEFAULT_OUTPUT_LEN);
    let out = out.get_mut(..length).ok_or_else(|| broken("its length"))?;
    argon
        .hash_password_into_with_memory(password.as_bytes(), salt, out, memory)
        .map_err(|error| failed(error.to_string()))?;
    Output::new(out).map_err(broken)
}

fn make(password: &str, memory: &mut Vec<Block>) -> Result<String, DirectorError> {
    let argon = Argon2::default();
    let salt = Salt::new(&rand::random::<[u8; 16]>()).map_err(broken)?;
    let hash = derive(&argon, password, &salt, memory)?;
    let record = PasswordHash {
        algorithm: Algorithm::default().ident(),
        version: Some(Version::default().into()),
        params: ParamsString::try_from(argon.params()).map_err(broken)?,
        salt: Some(salt),
        hash: Some(hash),
    };
    Ok(record.to_string())
}

fn check(password: &str, record: &str, memory: &mut Vec<Block>) -> Result<bool, DirectorError> {
    let record = PasswordHash::new(record).map_err(broken)?;
    let (Some(salt), Some(wanted)) = (&record.salt, &record.hash) else {
        return Err(broken("it holds no hash"));
    };
    let algorithm = Algorithm::try_from(record.algorithm.as_str()).map_err(broken)?;
    let version = record.version.map(Version::try_from).transpose();
    let version = version.map_err(broken)?.unwrap_or_default();
    let params = Params::try_from(&record).map_err(broken)?;
    let argon = Argon2::new(algorithm, version, params);
    // Outputs are compared in a time that does not tell where they differ.
    Ok(derive(&argon, password, salt, memory)? == *wanted)
}

impl Passwords {
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Vec<Block>) -> Result<T, DirectorError> + Send + 'static,
    ) -> Result<T, DirectorError> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| {
            DirectorError::unavailable(
                "passwords_busy",
                format!("too many passwords wait to be checked; try again in {TRY_AGAIN_AFTER} s"),
            )
            .retry_after(TRY_AGAIN_AFTER)
        })?;
        let turn = self.turns.clone().acquire_owned().await.map_err(failed)?;
        let kept = self.memory.clone();
        let work = move || {
            // Both go along: the work goes on when whoever asked for it hangs up.
            let (_place, _turn) = (place, turn);
            let free = || kept.lock().unwrap_or_else(PoisonError::into_inner);
            let mut memory = free().pop().unwrap_or_default();
            let done = work(&mut memory);
            free().push(memory);
            done
        };
        tokio::task::spawn_blocking(work).await.map_err(failed)?
    }

    /// The argon2id hash of a password, in PHC form.
    ///
    /// # Errors
    /// `passwords_busy` when too many wait already.
    pub async fn hash(&self, password: String) -> Result<String, DirectorError> {
        self.work(move |memory| make(&password, memory)).await
    }

    /// Whether this is the password of `hash`; without one it takes as long and is false.
    ///
    /// # Errors
    /// `passwords_busy` when too many wait already.
    pub async fn verify(
        &self,
        password: String,
        hash: Option<String>,
    ) -> Result<bool, DirectorError> {
        self.work(move |memory| match hash {
            Some(hash) => check(&password, &hash, memory),
            None => {
                let argon = Argon2::default();
                derive(&argon, &password, random_secret().as_bytes(), memory)?;
                Ok(false)
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use argon2::PasswordVerifier;

    #[tokio::test]
    async fn passwords_verify_only_themselves() {
        let passwords = Passwords::default();
        let hash = passwords.hash("correct horse".to_owned()).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m="), "{hash}");
        // The library's own check agrees, and so do we in memory that was used before.
        let right = Argon2::default().verify_password(b"correct horse", hash.as_str());
        assert!(right.is_ok(), "{right:?}");
        for (password, hash, wanted) in [
            ("wrong", Some(hash.clone()), false),
            ("correct horse", Some(hash.clone()), true),
            ("correct horse", None, false),
        ] {
            let found = passwords.verify(password.to_owned(), hash).await.unwrap();
            assert_eq!(found, wanted, "{password}");
        }
        let error = passwords
            .verify("x".to_owned(), Some("nonsense".to_owned()))
            .await;
        assert!(error.is_err());
    }

    #[tokio::test]
    async fn a_crowd_is_sent_away_and_memory_is_used_again() {
        let passwords = Passwords::default();
        let crowd = (0..AT_ONCE + WAITING + 40).map(|_| passwords.verify("guess".to_owned(), None));
        let answers = futures::future::join_all(crowd).await;
        let served = answers.iter().filter(|answer| answer.is_ok()).count();
        assert_eq!(served, AT_ONCE + WAITING);
        let refused = answers.into_iter().filter_map(Result::err);
        for error in refused {
            let DirectorError::Unavailable(explain) = error else {
                panic!("{error}");
            };
            assert_eq!(explain.code, "passwords_busy");
            assert_eq!(explain.retry_after, Some(TRY_AGAIN_AFTER));
        }
        // The pieces came back, and are all there ever were.
        let pieces: Vec<usize> = {
            let memory = passwords.memory.lock().unwrap();
            memory.iter().map(Vec::len).collect()
        };
        assert!((1..=AT_ONCE).contains(&pieces.len()), "{pieces:?}");
        let wanted = Params::default().block_count();
        assert!(pieces.iter().all(|piece| *piece == wanted), "{pieces:?}");
        assert!(passwords.verify("guess".to_owned(), None).await.is_ok());
    }

    #[tokio::test]
    async fn who_hangs_up_keeps_a_turn_until_the_work_is_done() {
        let passwords = Passwords::default();
        for _ in 0..10 {
            let mut asked = Box::pin(passwords.verify("guess".to_owned(), None));
            let _ = futures::poll!(&mut asked);
        }
        // Only what has begun still holds places; all come back in the end.
        let held = AT_ONCE + WAITING - passwords.places.available_permits();
        assert!(held <= AT_ONCE, "{held}");
        let all = u32::try_from(AT_ONCE + WAITING).unwrap();
        let wait = passwords.places.acquire_many(all);
        let bound = std::time::Duration::from_secs(60);
        drop(tokio::time::timeout(bound, wait).await.unwrap().unwrap());
        assert!(passwords.memory.lock().unwrap().len() <= AT_ONCE);
    }
}
