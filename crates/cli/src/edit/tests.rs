use super::{Mode, Owner, owner};

#[test]
fn letters_change_permissions_as_chmod_does() {
    for (text, before, is_dir, after) in [
        ("755", 0o644, false, 0o755),
        ("4755", 0o644, false, 0o4755),
        ("u+x", 0o644, false, 0o744),
        ("go-r", 0o644, false, 0o600),
        ("a=r", 0o777, false, 0o444),
        ("u=rwx,go=", 0o644, false, 0o700),
        ("a+X", 0o644, false, 0o644),
        ("a+X", 0o744, false, 0o755),
        ("a+X", 0o644, true, 0o755),
        ("u+s", 0o755, false, 0o4755),
        ("+t", 0o755, true, 0o1755),
        ("g+s,o-x", 0o755, true, 0o2754),
    ] {
        assert_eq!(Mode::parse(text).unwrap().apply(before, is_dir), after, "{text} of {before:o}");
    }
    for text in ["", "x", "u+q", "9", "z=r", "77777"] {
        assert!(Mode::parse(text).is_err(), "{text}");
    }
}

#[test]
fn owners_are_numbers() {
    assert_eq!(owner("5"), Ok(Owner { uid: Some(5), gid: None }));
    assert_eq!(owner("5:6"), Ok(Owner { uid: Some(5), gid: Some(6) }));
    assert_eq!(owner(":6"), Ok(Owner { uid: None, gid: Some(6) }));
    for text in ["", ":", "root", "1:2:3", "-1"] {
        assert!(owner(text).is_err(), "{text}");
    }
}
