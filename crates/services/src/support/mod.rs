//! Small helpers that several service types share: files, probes, work in the background,
//! lines of logs.
//! Nothing here knows a service type.

pub mod background;
pub mod files;
pub mod http;
pub mod metrics;
pub mod redis;
