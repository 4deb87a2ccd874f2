//! Exit codes: the one place that knows their numbers, and the errors that end in them.

use conpaas_client::ClientError;
use std::error::Error as StdError;

/// How a command ended, for scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    /// The command line or what it says makes no sense.
    Usage = 2,
    /// Not logged in, or not allowed.
    NotAllowed = 3,
    NotFound = 4,
    /// A name is taken, somebody else was faster, a quota or the computer is full.
    Conflict = 5,
    /// Timed out or detached; the work goes on.
    Detached = 6,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error as a person reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CliError {
    pub exit: Exit,
    pub what: String,
    /// From the nearest cause to the root.
    pub causes: Vec<String>,
    /// The next thing to do, best a command to type.
    pub hint: Option<String>,
}

/// What every command gives.
pub type Outcome = Result<(), CliError>;

impl CliError {
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self {
            exit,
            what: what.into(),
            causes: Vec::new(),
            hint: None,
        }
    }

    pub fn failed(what: impl Into<String>) -> Self {
        Self::new(Exit::Failed, what)
    }

    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(Exit::Usage, what)
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a cause and what that was caused by.
    pub fn because(mut self, cause: &(dyn StdError + 'static)) -> Self {
        self.causes.push(cause.to_string());
        self.causes.extend(sources(cause));
        self
    }
}

fn sources(error: &(dyn StdError + 'static)) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Some libraries repeat their source's words.
        if found.last() != Some(&text) {
            found.push(text);
        }
        cause = error.source();
    }
    found
}

/// The exit code for an error that the Director answered.
fn exit_of(status: u16, code: &str) -> Exit {
    if code.contains("quota") || code.contains("capacity") {
        return Exit::Conflict;
    }
    match status {
        400 | 422 => Exit::Usage,
        401 | 403 => Exit::NotAllowed,
        404 => Exit::NotFound,
        409 | 412 | 428 => Exit::Conflict,
        _ => Exit::Failed,
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        let hint = match &error {
            ClientError::NotRunning { .. } => Some(
                "start it here with `conpaas nutshell up`, or choose another one: `conpaas context list`".to_owned(),
            ),
            ClientError::OtherFingerprint { url } => Some(format!(
                "somebody may be in between. If the Director was set up anew, trust the new one: conpaas login {url} --repin"
            )),
            ClientError::Unreachable { .. } => {
                Some("check the address with `conpaas context list`, and the network".to_owned())
            }
            ClientError::BrokeOff { .. } => Some("try again; the Director may be restarting".to_owned()),
            ClientError::Malformed { .. } => Some("compare versions: `conpaas director status`".to_owned()),
            ClientError::Answered { status: 401, body } => {
                Some(body.hint.clone().unwrap_or_else(|| "log in first: conpaas login".to_owned()))
            }
            ClientError::Answered { body, .. } => body.hint.clone(),
            ClientError::Address { .. } | ClientError::Tls { .. } | ClientError::Setup { .. } => None,
        };
        let exit = match &error {
            ClientError::Answered { status, body } => exit_of(*status, &body.code),
            ClientError::Address { .. } => Exit::Usage,
            _ => Exit::Failed,
        };
        Self {
            exit,
            what: error.to_string(),
            causes: sources(&error),
            hint,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conpaas_model::api::ErrorBody;

    #[test]
    fn answers_become_exit_codes() {
        let exit = |status, code: &str| {
            let body = ErrorBody {
                code: code.into(),
                message: "x".into(),
                hint: Some("y".into()),
            };
            CliError::from(ClientError::Answered { status, body }).exit as u8
        };
        assert_eq!(exit(401, "not_logged_in"), 3);
        assert_eq!(exit(403, "not_allowed"), 3);
        assert_eq!(exit(403, "quota_exceeded"), 5);
        assert_eq!(exit(404, "not_found"), 4);
        assert_eq!(exit(409, "name_taken"), 5);
        assert_eq!(exit(422, "unknown_role"), 2);
        assert_eq!(exit(500, "internal"), 1);
    }
}
