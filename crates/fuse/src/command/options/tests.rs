use rustix::mount::MountFlags;

use super::{Attach, Options};

#[test]
fn words_go_to_whom_they_concern() {
    let o = Options::parse(
        "rw,noatime,nosuid,errors=remount-ro,user_xattr,x-systemd.automount,uhelper=hal,allow_other",
    )
    .unwrap();
    assert_eq!(o.ext4, "rw,noatime,errors=remount-ro,user_xattr");
    assert_eq!(o.flags, MountFlags::NOATIME | MountFlags::NOSUID);
    assert_eq!(o.allow_other, Some(true));
    assert!(!o.remount);
}

#[test]
fn later_words_win() {
    let o =
        Options::parse("ro,nosuid,nodev,rw,suid,attach=loop,attach=plain,writeback_cache,nowriteback_cache")
            .unwrap();
    assert_eq!(o.flags, MountFlags::NODEV);
    assert_eq!(o.attach, Attach::Plain);
    assert!(!o.writeback_cache);
}

#[test]
fn defaults_of_fstab_are_dropped() {
    for word in ["defaults", "noauto", "nofail", "_netdev", "user", "comment=x", "loop", "x-gvfs-show"] {
        assert_eq!(Options::parse(word).unwrap().ext4, "", "{word}");
    }
}

#[test]
fn unknown_words_and_bad_values_are_refused_by_name() {
    for word in ["frobnicate", "errors=never", "readers=x", "attach=glue", "offset=-1"] {
        let error = Options::parse(word).unwrap_err();
        assert_eq!(error.status, super::super::status::USAGE);
        assert!(error.reason.contains(word), "{}", error.reason);
    }
}

#[test]
fn a_transport_is_one_of_two() {
    use crate::session::Transport;
    assert_eq!(Options::parse("").unwrap().transport, Transport::Device);
    assert_eq!(Options::parse("transport=uring").unwrap().transport, Transport::Ring);
    assert_eq!(Options::parse("transport=uring,transport=dev").unwrap().transport, Transport::Device);
    assert!(Options::parse("transport=pigeon").is_err());
}

/// Linux ends a connection that asks for idmapped mounts without it, and with ACLs turns it on itself.
#[test]
fn the_kernel_checks_permissions_always() {
    assert_eq!(Options::parse("default_permissions").unwrap(), Options::default());
    let error = Options::parse("nodefault_permissions").unwrap_err();
    assert!(error.reason.contains("nodefault_permissions"), "{}", error.reason);
}

/// Whatever contradicts itself, the kernel says what the server does: the last word.
#[test]
fn the_last_word_about_access_times_counts_on_both_sides() {
    use extant::AtimePolicy::{self, Noatime, Relatime, Strictatime};
    let cases: [(&str, AtimePolicy, MountFlags); 8] = [
        ("noatime,relatime", Relatime, MountFlags::RELATIME),
        ("relatime,noatime", Noatime, MountFlags::NOATIME),
        ("strictatime,noatime", Noatime, MountFlags::NOATIME),
        ("noatime,strictatime", Strictatime, MountFlags::STRICTATIME),
        ("noatime,atime", Relatime, MountFlags::RELATIME),
        ("strictatime,nostrictatime", Relatime, MountFlags::RELATIME),
        ("noatime,nostrictatime", Noatime, MountFlags::NOATIME),
        ("strictatime,norelatime", Strictatime, MountFlags::STRICTATIME),
    ];
    for (list, policy, flags) in cases {
        let o = Options::parse(list).unwrap();
        assert_eq!((o.flags, extant::MountOptions::parse(&o.ext4).unwrap().atime), (flags, policy), "{list}");
    }
    assert_eq!(Options::parse("nodiratime,diratime").unwrap().flags, MountFlags::empty());
    assert_eq!(remounted("rw,noatime", "rw", "remount,atime"), MountFlags::RELATIME);
    assert_eq!(remounted("rw,noatime", "rw", "remount,nostrictatime"), MountFlags::NOATIME);
    assert_eq!(remounted("rw", "rw", "remount,norelatime"), MountFlags::STRICTATIME);
}

/// The flags that a remount asks for, of what mountinfo shows with these options of the mount and of the filesystem.
fn remounted(options: &str, super_options: &str, list: &str) -> MountFlags {
    let entry = crate::mount::MountEntry {
        id: 36,
        dev: (0, 45),
        root: "/".into(),
        target: "/mnt".into(),
        kind: "fuse.extant".into(),
        source: "image".into(),
        options: options.into(),
        super_options: super_options.into(),
    };
    Options::parse_onto(list, super::flags_of(&entry)).unwrap().flags
}

#[test]
fn a_remount_changes_what_its_words_name() {
    let now = ("rw,nosuid,nodev,noexec,nosymfollow,noatime,nodiratime", "rw,sync,dirsync,user_id=0");
    let all = MountFlags::NOSUID
        | MountFlags::NODEV
        | MountFlags::NOEXEC
        | MountFlags::NOSYMFOLLOW
        | MountFlags::NOATIME
        | MountFlags::NODIRATIME
        | MountFlags::SYNCHRONOUS
        | MountFlags::DIRSYNC;
    assert_eq!(remounted(now.0, now.1, "remount,commit=7"), all);
    assert_eq!(remounted(now.0, now.1, "remount,ro"), all | MountFlags::RDONLY);
    let fewer = all - MountFlags::NOEXEC - MountFlags::SYNCHRONOUS - MountFlags::NOATIME;
    assert_eq!(remounted(now.0, now.1, "remount,exec,async,relatime"), fewer | MountFlags::RELATIME);
    assert_eq!(remounted("ro,relatime", "ro", "remount"), MountFlags::RDONLY | MountFlags::RELATIME);
    assert_eq!(remounted("ro", "ro", "remount,rw,nodev"), MountFlags::NODEV | MountFlags::STRICTATIME);
    // A mount that is read-only by itself says nothing about the filesystem.
    assert_eq!(remounted("ro,noatime", "rw", "remount"), MountFlags::NOATIME);
}

#[test]
fn symbolic_links_may_be_left_alone_and_labels_of_a_mount_are_refused() {
    let o = Options::parse("nosymfollow").unwrap();
    assert_eq!((o.flags, o.ext4.as_str()), (MountFlags::NOSYMFOLLOW, ""));
    assert_eq!(Options::parse("nosymfollow,symfollow").unwrap().flags, MountFlags::empty());
    for word in ["context=system_u:object_r:tmp_t:s0", "fscontext=x", "rootcontext=\"a:b,c\"", "seclabel"] {
        let reason = Options::parse(word).unwrap_err().reason;
        assert!(reason.contains("SELinux"), "{word}: {reason}");
    }
}

#[test]
fn what_a_second_mount_cannot_have() {
    let first = Options::parse("offset=1024,readers=3,allow_other").unwrap();
    let refused = |list: &str| first.not_shared(&Options::parse(list).unwrap());
    assert_eq!(refused("offset=1024"), Vec::<&str>::new());
    assert_eq!(refused("offset=1024,readers=3,allow_other,transport=dev,nopin"), Vec::<&str>::new());
    assert_eq!(refused(""), ["offset="]);
    assert_eq!(refused("partition=2"), ["offset=", "partition="]);
    let words = "offset=1024,noallow_other,writeback_cache,readers=2,pin,transport=uring,trace";
    assert_eq!(refused(words), ["allow_other", "writeback_cache", "readers=", "pin", "transport=", "trace"]);
}
