use super::{Access, Caps, Credentials};

#[test]
fn class_of_the_caller_decides_alone() {
    let owner = Credentials::user(10, 20, &[]);
    // The owner's bits refuse although the group's and the others' would grant.
    assert!(!owner.granted_by_mode(10, 20, 0o077, Access::READ));
    let member = Credentials::user(11, 5, &[20]);
    assert!(!member.granted_by_mode(10, 20, 0o707, Access::READ));
    assert!(member.granted_by_mode(10, 20, 0o040, Access::READ));
    let other = Credentials::user(11, 5, &[]);
    assert!(other.granted_by_mode(10, 20, 0o006, Access::READ_WRITE));
    assert!(!other.granted_by_mode(10, 20, 0o004, Access::READ_WRITE));
}

#[test]
fn override_executes_only_what_somebody_may() {
    let root = Credentials::root();
    assert!(root.granted_by_caps(false, 0o000, Access::READ_WRITE));
    assert!(!root.granted_by_caps(false, 0o644, Access::EXEC));
    assert!(root.granted_by_caps(false, 0o010, Access::EXEC));
    assert!(root.granted_by_caps(true, 0o000, Access::EXEC));
    let mut reader = Credentials::user(1, 1, &[]);
    reader.caps = Caps::DAC_READ_SEARCH;
    assert!(reader.granted_by_caps(true, 0, Access::EXEC));
    assert!(!reader.granted_by_caps(true, 0, Access::WRITE_EXEC));
    assert!(!reader.granted_by_caps(false, 0, Access::READ_WRITE));
}
