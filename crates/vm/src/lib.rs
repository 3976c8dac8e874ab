//! Page cache with per-block state, writeback, reclaim, invalidate_lock.
