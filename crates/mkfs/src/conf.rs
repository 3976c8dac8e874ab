//! mke2fs.conf: the defaults of a filesystem by type and usage. Source: mke2fs.conf(5).

use std::collections::BTreeMap;
use std::path::Path;

/// What upstream's version 1.47 has built in; used where there is no file.
const BUILT_IN: &str = "
[defaults]
    base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
    default_mntopts = acl,user_xattr
    enable_periodic_fsck = 0
    blocksize = 4096
    inode_size = 256
    inode_ratio = 16384
[fs_types]
    ext3 = { features = has_journal }
    ext4 = {
        features = has_journal,extent,huge_file,flex_bg,metadata_csum,metadata_csum_seed,64bit,dir_nlink,extra_isize,orphan_file
    }
    small = {
        blocksize = 1024
        inode_ratio = 4096
    }
    floppy = {
        blocksize = 1024
        inode_ratio = 8192
    }
    big = { inode_ratio = 32768 }
    huge = { inode_ratio = 65536 }
    news = { inode_ratio = 4096 }
    largefile = {
        inode_ratio = 1048576
        blocksize = -1
    }
    largefile4 = {
        inode_ratio = 4194304
        blocksize = -1
    }
    hurd = {
        blocksize = 4096
        inode_size = 128
    }
";

/// A parsed configuration.
#[derive(Debug, Clone)]
pub struct Conf {
    defaults: BTreeMap<String, String>,
    types: BTreeMap<String, BTreeMap<String, String>>,
}

impl Conf {
    /// Reads `path`; without it, what upstream has built in.
    #[must_use]
    pub fn load(path: &Path) -> Self {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text),
            Err(_) => Self::built_in(),
        }
    }

    /// Upstream's defaults.
    #[must_use]
    pub fn built_in() -> Self {
        Self::parse(BUILT_IN)
    }

    /// Parses the text of a configuration; lines without meaning are passed over, as mke2fs does.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut conf = Self { defaults: BTreeMap::new(), types: BTreeMap::new() };
        let (mut section, mut stanza) = (String::new(), None::<String>);
        for line in text.lines() {
            let line = line.trim();
            if line.is_empty() || line.starts_with([';', '#']) {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                (section, stanza) = (name.trim().to_owned(), None);
                continue;
            }
            if line.starts_with('}') {
                stanza = None;
                continue;
            }
            let Some((key, value)) = line.split_once('=') else { continue };
            let (key, value) = (key.trim().to_owned(), value.trim());
            match value.strip_prefix('{') {
                Some(rest) => match rest.trim().strip_suffix('}') {
                    Some(inner) => conf.set(&section, Some(&key), inner),
                    None => stanza = Some(key),
                },
                None => conf.store(&section, stanza.as_deref(), key, value),
            }
        }
        conf
    }

    fn set(&mut self, section: &str, stanza: Option<&str>, relation: &str) {
        if let Some((key, value)) = relation.split_once('=') {
            self.store(section, stanza, key.trim().to_owned(), value.trim());
        }
    }

    fn store(&mut self, section: &str, stanza: Option<&str>, key: String, value: &str) {
        let value = value.trim_matches('"').to_owned();
        match (section, stanza) {
            ("defaults", None) => drop(self.defaults.insert(key, value)),
            ("fs_types", Some(name)) => {
                drop(self.types.entry(name.to_owned()).or_default().insert(key, value));
            }
            _ => {}
        }
    }

    /// Whether a filesystem or usage type has a stanza.
    #[must_use]
    pub fn knows(&self, name: &str) -> bool {
        self.types.contains_key(name)
    }

    /// The value of `key`: of the last of `types` that has one, else of the defaults.
    #[must_use]
    pub fn string(&self, types: &[String], key: &str) -> Option<&str> {
        let of_type = types.iter().rev().find_map(|t| self.types.get(t)?.get(key));
        of_type.or_else(|| self.defaults.get(key)).map(String::as_str)
    }

    /// The same as a number.
    #[must_use]
    pub fn integer(&self, types: &[String], key: &str) -> Option<i64> {
        self.string(types, key)?.parse().ok()
    }

    /// The same as a boolean.
    #[must_use]
    pub fn boolean(&self, types: &[String], key: &str) -> Option<bool> {
        match self.string(types, key)? {
            "1" | "y" | "yes" | "true" | "t" | "on" => Some(true),
            "0" | "n" | "no" | "false" | "nil" | "off" => Some(false),
            _ => None,
        }
    }

    /// The values of `key` of those `types` that have one, in order.
    pub fn each<'a>(&'a self, types: &'a [String], key: &'a str) -> impl Iterator<Item = &'a str> {
        types.iter().filter_map(move |t| self.types.get(t)?.get(key).map(String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types(names: &[&str]) -> Vec<String> {
        names.iter().map(|&n| n.to_owned()).collect()
    }

    #[test]
    fn later_types_win() {
        let conf = Conf::built_in();
        assert_eq!(conf.integer(&types(&["ext4"]), "blocksize"), Some(4096));
        assert_eq!(conf.integer(&types(&["ext4", "small"]), "blocksize"), Some(1024));
        assert_eq!(conf.integer(&types(&["ext4", "largefile"]), "blocksize"), Some(-1));
        assert_eq!(conf.string(&types(&["ext3"]), "features"), Some("has_journal"));
        assert_eq!(conf.boolean(&types(&["ext3"]), "enable_periodic_fsck"), Some(false));
        assert!(conf.knows("hurd") && !conf.knows("nonsense"));
    }

    #[test]
    fn odd_lines_do_no_harm() {
        let conf = Conf::parse(
            "[defaults]\n; a comment\nblocksize=2048\nnonsense\n}\n[fs_types]\nx = {\n a = \"b c\"\n",
        );
        assert_eq!(conf.string(&types(&["x"]), "a"), Some("b c"));
        assert_eq!(conf.integer(&[], "blocksize"), Some(2048));
    }
}
