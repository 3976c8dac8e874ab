use super::{Access, Caps, Credentials, caps_grant, mode_grants};

#[test]
fn class_of_the_caller_decides_alone() {
    let owner = Credentials::user(10, 20, &[]);
    // The owner's bits refuse although the group's and the others' would grant.
    assert!(!mode_grants(&owner, 10, 20, 0o077, Access::READ));
    let member = Credentials::user(11, 5, &[20]);
    assert!(!mode_grants(&member, 10, 20, 0o707, Access::READ));
    assert!(mode_grants(&member, 10, 20, 0o040, Access::READ));
    let other = Credentials::user(11, 5, &[]);
    assert!(mode_grants(&other, 10, 20, 0o006, Access::READ_WRITE));
    assert!(!mode_grants(&other, 10, 20, 0o004, Access::READ_WRITE));
}

#[test]
fn override_executes_only_what_somebody_may() {
    let root = Credentials::root();
    assert!(caps_grant(&root, false, 0o000, Access::READ_WRITE));
    assert!(!caps_grant(&root, false, 0o644, Access::EXEC));
    assert!(caps_grant(&root, false, 0o010, Access::EXEC));
    assert!(caps_grant(&root, true, 0o000, Access::EXEC));
    let mut reader = Credentials::user(1, 1, &[]);
    reader.caps = Caps::DAC_READ_SEARCH;
    assert!(caps_grant(&reader, true, 0, Access::EXEC));
    assert!(!caps_grant(&reader, true, 0, Access::WRITE_EXEC));
    assert!(!caps_grant(&reader, false, 0, Access::READ_WRITE));
}
