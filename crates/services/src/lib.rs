//! Service types, one folder each, and the registry that lists them. Nothing outside this crate
//! names a service type: it asks the registry.

#![recursion_limit = "512"]

pub mod helloworld;
pub mod php;
pub mod registry;
mod support;
pub mod system;
