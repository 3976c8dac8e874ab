//! The library against the kernel, e2fsck and the model.

#[macro_use]
extern crate extant_testkit;

mod bookkeeping;
mod content;
mod crash;
mod direct;
mod fast_commit;
mod hostile;
mod journalled;
mod names;
mod promises;
mod quota;
mod reading;
mod recover;
mod speed;
mod support;
mod threads;
mod values;
