//! Errors of the small programs (supervisor, helper) as they travel back to the driver: which
//! step failed, how, and the cure where one is known.

use crate::error::CloudError;
use serde::{Deserialize, Serialize};
use std::fmt::Display;

/// One failed step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepError {
    /// What was being done, as it reads after "could not".
    pub step: String,
    pub detail: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

impl StepError {
    pub fn new(step: impl Into<String>, detail: impl Display) -> Self {
        Self {
            step: step.into(),
            detail: detail.to_string(),
            cure: None,
        }
    }
}

impl From<StepError> for CloudError {
    fn from(e: StepError) -> Self {
        match e.cure {
            Some(cure) => CloudError::Unfit {
                what: format!("could not {}: {}", e.step, e.detail),
                cure,
            },
            None => CloudError::Step {
                step: e.step,
                detail: e.detail,
            },
        }
    }
}

/// Names the step a result belongs to.
pub trait Step<T> {
    /// `step` reads after "could not".
    fn step(self, step: impl Into<String>) -> Result<T, StepError>;
    /// The same, with what a person can do about it.
    fn step_cure(self, step: impl Into<String>, cure: &str) -> Result<T, StepError>;
}

impl<T, E: Display> Step<T> for Result<T, E> {
    fn step(self, step: impl Into<String>) -> Result<T, StepError> {
        self.map_err(|e| StepError::new(step, e))
    }
    fn step_cure(self, step: impl Into<String>, cure: &str) -> Result<T, StepError> {
        self.map_err(|e| StepError {
            cure: Some(cure.to_owned()),
            ..StepError::new(step, e)
        })
    }
}
