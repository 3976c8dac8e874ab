use super::{AtimePolicy, DataMode, DaxMode, DaxSwitch, MountOptions, OnError, Presets};

#[test]
fn later_words_win_and_values_are_parsed() {
    let o = MountOptions::parse(
        "ro,noatime,sb=32768,errors=panic,commit=30,data=writeback,nobarrier,strictatime,cache_size=64m",
    )
    .unwrap();
    assert!(o.read_only);
    assert_eq!(o.atime, AtimePolicy::Strictatime);
    assert_eq!(o.sb, Some(32768));
    assert_eq!(o.errors, Some(OnError::Panic));
    assert_eq!(o.commit, Some(30));
    assert_eq!(o.data, Some(DataMode::Writeback));
    assert_eq!(o.barrier, Some(false));
    assert_eq!(o.cache_size, Some(64 << 20));
}

#[test]
fn dax_has_three_values_and_a_short_form() {
    let mode = |list| MountOptions::parse(list).unwrap().dax.unwrap();
    assert_eq!(MountOptions::parse("").unwrap().resolve(&Presets::default()).unwrap().dax, DaxMode::Inode);
    assert_eq!((mode("dax"), mode("dax=always")), (DaxMode::Always, DaxMode::Always));
    assert_eq!((mode("dax,dax=never"), mode("dax=never,dax=inode")), (DaxMode::Never, DaxMode::Inode));
    assert_eq!(MountOptions::parse("dax_switch=deferred").unwrap().dax_switch, DaxSwitch::Deferred);
}

#[test]
fn unknown_and_malformed_words_are_refused_by_name() {
    for bad in [
        "frobnicate",
        "errors=maybe",
        "commit=x",
        "data=",
        "stripe=99999999999",
        "cache_size=-1",
        "dax=sometimes",
        "dax_switch=",
        "pmem",
        "pmem=yes",
    ] {
        let e = MountOptions::parse(bad).unwrap_err().to_string();
        assert!(e.contains(bad), "{bad}: {e}");
    }
}

#[test]
fn words_without_effect_are_accepted() {
    // Whether blocks are delayed is looked at, beside `data=journal`.
    let delay = ["delalloc", "nodelalloc"];
    let all: Vec<&str> =
        super::WITHOUT_EFFECT.iter().map(|(n, _)| *n).filter(|n| !delay.contains(n)).collect();
    let o = MountOptions::parse(&all.join(",")).unwrap();
    assert_eq!(o, MountOptions::default());
}

/// The manual names each of them.
#[test]
fn words_without_effect_are_in_the_manual() {
    let manual = include_str!("../../../../docs/mount.md");
    for (name, why) in super::WITHOUT_EFFECT {
        let row =
            manual.lines().find(|l| l.contains(&format!("`{name}`")) && l.ends_with(&format!("| {why} |")));
        assert!(row.is_some(), "docs/mount.md: no row of `{name}`");
    }
}

#[test]
fn superblock_presets_apply_where_nothing_was_given() {
    let presets = Presets {
        default_mount_opts: 0x2 | 0x60 | 0x400 | 0x800,
        errors: 2,
        resuid: 7,
        ..Presets::default()
    };
    let r = MountOptions::parse("nodiscard").unwrap().resolve(&presets).unwrap();
    assert!(r.grpid && !r.discard && !r.delalloc && r.barrier);
    assert_eq!(r.data, DataMode::Writeback);
    assert_eq!(r.errors, OnError::RemountReadOnly);
    assert_eq!((r.resuid, r.commit_secs), (7, 5));
}

/// What the superblock says that is none of its three values is read as the kernel reads it.
#[test]
fn unknown_behaviour_on_errors_is_read_only() {
    let errors =
        |errors| MountOptions::default().resolve(&Presets { errors, ..Presets::default() }).unwrap().errors;
    let read_only = OnError::RemountReadOnly;
    assert_eq!(
        [0, 1, 2, 3, 4].map(errors),
        [read_only, OnError::Continue, read_only, OnError::Panic, read_only]
    );
}

#[test]
fn noload_needs_ro() {
    assert!(MountOptions::parse("noload").unwrap().resolve(&Presets::default()).is_err());
    assert!(MountOptions::parse("noload,ro").unwrap().resolve(&Presets::default()).is_ok());
}
