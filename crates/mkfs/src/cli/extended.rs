//! The values of `-E` and `-J`.

use super::{number, owner, uuid};
use crate::error::{Result, usage};
use crate::options::Options;
use crate::size::{parse_bytes, parse_size};

/// `-E name[=value],…`
pub(super) fn extended(o: &mut Options, list: &str) -> Result<()> {
    for item in list.split(',').filter(|i| !i.is_empty()) {
        let (name, value) = match item.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (item, None),
        };
        one(o, name, value)?;
    }
    Ok(())
}

fn one(o: &mut Options, name: &str, value: Option<&str>) -> Result<()> {
    let what = format!("-E {name}");
    let need = || match value {
        Some(v) => Ok(v),
        None => usage(format!("{what}: a value is missing, as in {name}=...")),
    };
    let e = &mut o.extended;
    match name {
        "stride" => e.stride = Some(u32::from(number::<u16>(&what, need()?)?)),
        "stripe_width" | "stripe-width" => e.stripe_width = Some(number(&what, need()?)?),
        "resize" => e.resize = Some(parse_size(need()?)?),
        "offset" => e.offset = Some(parse_bytes(need()?)?),
        "hash_seed" => e.hash_seed = Some(uuid(&what, need()?)?),
        "lazy_itable_init" => e.lazy_itable_init = Some(switch(&what, value)?),
        "lazy_journal_init" => e.lazy_journal_init = Some(switch(&what, value)?),
        "assume_storage_prezeroed" => e.prezeroed = Some(switch(&what, value)?),
        "packed_meta_blocks" => e.packed_meta_blocks = Some(switch(&what, value)?),
        "no_copy_xattrs" => e.no_copy_xattrs = true,
        "num_backup_sb" => e.num_backup_sb = Some(number(&what, need()?)?),
        "root_owner" => e.root_owner = Some(root_owner(&what, value)?),
        "root_perms" => e.root_perms = Some(perms(&what, need()?)?),
        "quotatype" => e.quota_types = Some(quota_types(need()?)?),
        "orphan_file_size" => e.orphan_file_size = Some(parse_bytes(need()?)?),
        "mmp_update_interval" => e.mmp_update_interval = Some(number(&what, need()?)?),
        "desc_size" | "desc-size" => e.desc_size = Some(number(&what, need()?)?),
        "discard" => e.discard = Some(true),
        "nodiscard" => e.discard = Some(false),
        "test_fs" => e.test_fs = true,
        "revision" => e.revision = Some(number(&what, need()?)?),
        "encoding" | "encoding_flags" => {
            return usage(format!("{what}: names without case (casefold) are not supported; leave it out"));
        }
        _ => {
            return usage(format!(
                "{what}: unknown extended option; there are stride, stripe_width, resize, offset, hash_seed, \
                 lazy_itable_init, lazy_journal_init, assume_storage_prezeroed, packed_meta_blocks, no_copy_xattrs, \
                 num_backup_sb, root_owner, root_perms, quotatype, orphan_file_size, mmp_update_interval, desc_size, \
                 discard, nodiscard, test_fs, revision"
            ));
        }
    }
    Ok(())
}

fn switch(what: &str, value: Option<&str>) -> Result<bool> {
    match value {
        None | Some("1") => Ok(true),
        Some("0") => Ok(false),
        Some(other) => usage(format!("{what}={other}: 0 or 1")),
    }
}

/// Without a value, whoever runs the program.
fn root_owner(what: &str, value: Option<&str>) -> Result<(u32, u32)> {
    match value {
        Some(text) => owner(what, text),
        None => Ok((rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw())),
    }
}

fn perms(what: &str, text: &str) -> Result<u16> {
    match u16::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => usage(format!("{what}={text}: give permissions in octal, as in 755")),
    }
}

fn quota_types(text: &str) -> Result<[bool; 3]> {
    let mut types = [false; 3];
    for name in text.split(':') {
        match name {
            "usr" | "usrquota" => types[0] = true,
            "grp" | "grpquota" => types[1] = true,
            "prj" | "prjquota" => types[2] = true,
            other => {
                return usage(format!(
                    "-E quotatype={other}: usrquota, grpquota, prjquota, separated by ':'"
                ));
            }
        }
    }
    Ok(types)
}

/// `-J name=value,…`
pub(super) fn journal(o: &mut Options, list: &str) -> Result<()> {
    for item in list.split(',').filter(|i| !i.is_empty()) {
        let Some((name, value)) = item.split_once('=') else {
            return usage(format!("-J {item}: a value is missing, as in size=64"));
        };
        match name {
            "size" => o.journal_size = Some(number("-J size", value.trim_end_matches(['m', 'M']))?),
            "fast_commit_size" => o.fast_commit_size = Some(number("-J fast_commit_size", value)?),
            "location" => o.journal_location = Some(parse_size(value)?),
            "device" => o.journal_device = Some(value.into()),
            _ => {
                return usage(format!(
                    "-J {name}: unknown; there are size, fast_commit_size, location, device"
                ));
            }
        }
    }
    Ok(())
}
