//! Ranked locks with lock-order checking, and the switch to a schedule-exploring runtime.
