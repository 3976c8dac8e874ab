use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Gate, Level};

#[test]
fn closing_waits_for_those_inside_and_keeps_others_out() {
    let gate = Arc::new(Gate::new());
    let entered = Arc::new(AtomicU32::new(0));
    let pass = gate.enter(Level::Write);
    let closer = {
        let gate = Arc::clone(&gate);
        std::thread::spawn(move || gate.close(Level::Write))
    };
    drop(pass);
    closer.join().unwrap();
    // Internal work goes on while the write level is closed.
    drop(gate.enter(Level::Internal));
    let waiter = {
        let (gate, entered) = (Arc::clone(&gate), Arc::clone(&entered));
        std::thread::spawn(move || {
            let _pass = gate.enter(Level::Write);
            entered.store(1, Ordering::SeqCst);
        })
    };
    assert_eq!(entered.load(Ordering::SeqCst), 0);
    gate.open();
    waiter.join().unwrap();
    assert_eq!(entered.load(Ordering::SeqCst), 1);
}
