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
