//! The library against the kernel, e2fsck and the model.

#[macro_use]
extern crate extant_testkit;

#[cfg(not(feature = "shuttle"))]
mod blocks;
#[cfg(not(feature = "shuttle"))]
mod bookkeeping;
#[cfg(not(feature = "shuttle"))]
mod content;
#[cfg(not(feature = "shuttle"))]
mod crash;
#[cfg(not(feature = "shuttle"))]
mod damaged_tree;
#[cfg(not(feature = "shuttle"))]
mod dax;
#[cfg(not(feature = "shuttle"))]
mod direct;
#[cfg(feature = "shuttle")]
mod explore;
#[cfg(feature = "shuttle")]
mod explore_direct;
#[cfg(feature = "shuttle")]
mod explore_fail;
#[cfg(feature = "shuttle")]
mod explore_gates;
#[cfg(feature = "shuttle")]
mod explore_map;
#[cfg(feature = "shuttle")]
mod explore_pins;
#[cfg(feature = "shuttle")]
mod failing;
#[cfg(not(feature = "shuttle"))]
mod fast_commit;
#[cfg(not(feature = "shuttle"))]
mod fiemap;
#[cfg(not(feature = "shuttle"))]
mod harmless;
#[cfg(not(feature = "shuttle"))]
mod hostile;
#[cfg(not(feature = "shuttle"))]
mod journalled;
#[cfg(not(feature = "shuttle"))]
mod map_stress;
#[cfg(not(feature = "shuttle"))]
mod map_sync;
#[cfg(not(feature = "shuttle"))]
mod mapped_errors;
#[cfg(not(feature = "shuttle"))]
mod mapped_memory;
#[cfg(not(feature = "shuttle"))]
mod mapping;
#[cfg(not(feature = "shuttle"))]
mod mmp;
#[cfg(not(feature = "shuttle"))]
mod move_ext;
#[cfg(not(feature = "shuttle"))]
mod names;
#[cfg(not(feature = "shuttle"))]
mod promises;
#[cfg(not(feature = "shuttle"))]
mod quota;
#[cfg(not(feature = "shuttle"))]
mod reading;
#[cfg(not(feature = "shuttle"))]
mod recover;
#[cfg(not(feature = "shuttle"))]
mod settings;
#[cfg(not(feature = "shuttle"))]
mod shift;
#[cfg(not(feature = "shuttle"))]
mod shown;
#[cfg(not(feature = "shuttle"))]
mod small_journal;
#[cfg(not(feature = "shuttle"))]
mod speed;
#[cfg_attr(feature = "shuttle", expect(dead_code, reason = "the explored scenarios use a part of it"))]
mod support;
#[cfg(not(feature = "shuttle"))]
mod threads;
#[cfg(not(feature = "shuttle"))]
mod values;
#[cfg(not(feature = "shuttle"))]
mod visible_quota;
#[cfg(not(feature = "shuttle"))]
mod whole;
#[cfg(not(feature = "shuttle"))]
mod wiped;
