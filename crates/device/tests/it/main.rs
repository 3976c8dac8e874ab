//! Devices from outside.

mod common;
mod devices;
mod files;
mod tables;
