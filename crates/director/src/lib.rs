//! The Director: the daemon people talk to. It keeps what people want, says who may ask for
//! what, and shows what became of it; `machines` obtains machines and talks to managers.

pub mod access;
pub mod api;
mod archive;
pub mod auth;
mod background;
pub mod backup;
mod blobs;
pub mod brake;
pub mod config;
mod director;
pub mod error;
mod hints;
pub mod hosts;
pub mod incarnation;
pub mod life;
pub mod logs;
pub mod machine_side;
pub mod machines;
pub mod metrics;
pub mod operations;
mod own;
pub mod passwords;
pub mod scale;
pub mod settings;
pub mod shared;
pub mod state;
pub mod store;
mod uploads;
pub mod vault;

pub use api::openapi;
pub use config::DirectorConfig;
pub use director::{Director, PASSWORD_FILE, Prepared, run};
pub use error::{DirectorError, StartError};
