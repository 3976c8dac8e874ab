//! jbd2: metadata buffers, handles, transactions, commit, checkpoint, revoke, recovery.
