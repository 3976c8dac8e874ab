//! What a check can find: the taxonomy, with the text, place and values of each kind.

use std::fmt;

/// The part of the check that made a finding, in the order they run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Pass {
    /// Superblock, descriptors, journal, multiple-mount protection, orphans.
    Superblock,
    /// Inodes and their block maps, extended attributes.
    Inodes,
    /// Blocks that more than one owner claims.
    SharedBlocks,
    /// Directories and their indexes.
    Directories,
    /// Whether every directory can be reached from the root.
    Connectivity,
    /// Link counts and other reference counts.
    References,
    /// Bitmaps and counts.
    Summary,
    /// Quota files.
    Quota,
}

impl Pass {
    /// A short name for people and programs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Superblock => "superblock",
            Self::Inodes => "inodes",
            Self::SharedBlocks => "shared-blocks",
            Self::Directories => "directories",
            Self::Connectivity => "connectivity",
            Self::References => "references",
            Self::Summary => "summary",
            Self::Quota => "quota",
        }
    }
}

/// How much a finding matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Severity {
    /// Worth saying, but the filesystem is consistent (e2fsck, too, says clean).
    Note,
    /// The filesystem is not consistent.
    Error,
    /// The check could not go on.
    Fatal,
}

/// Which structure a finding is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Place {
    /// The whole filesystem, or its superblock.
    Filesystem,
    /// A block group.
    Group(u32),
    /// An inode.
    Inode(u32),
    /// A block of the device.
    Block(u64),
    /// A block of a directory: inode and logical block.
    DirBlock(u32, u32),
    /// A record of a directory: inode, logical block, byte in it. Parts of inline directories are blocks 0 and 1.
    DirEntry(u32, u32, u32),
    /// A quota file by its type (0 user, 1 group, 2 project).
    QuotaFile(u8),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filesystem => f.write_str("filesystem"),
            Self::Group(g) => write!(f, "group {g}"),
            Self::Inode(i) => write!(f, "inode {i}"),
            Self::Block(b) => write!(f, "block {b}"),
            Self::DirBlock(i, l) => write!(f, "directory inode {i}, block {l}"),
            Self::DirEntry(i, l, o) => write!(f, "directory inode {i}, block {l}, byte {o}"),
            Self::QuotaFile(t) => {
                write!(f, "{} quota file", ["user", "group", "project"].get(usize::from(*t)).unwrap_or(&"?"))
            }
        }
    }
}

macro_rules! kinds {
    ($( $name:ident { $($field:ident),* } $severity:ident $text:literal; )*) => {
        /// What is wrong. The text of each kind, with its values, is its documentation.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        pub enum Kind {
            $( #[doc = $text] $name { $( #[doc = "A value of the text."] $field: u64 ),* }, )*
        }

        impl Kind {
            /// How much it matters.
            #[must_use]
            pub const fn severity(&self) -> Severity {
                match self { $( Self::$name { .. } => Severity::$severity, )* }
            }

            /// The kind's name, for programs.
            #[must_use]
            pub const fn name(&self) -> &'static str {
                match self { $( Self::$name { .. } => stringify!($name), )* }
            }

            /// The values of the text by name.
            #[must_use]
            pub fn values(&self) -> Vec<(&'static str, u64)> {
                match *self { $( Self::$name { $($field),* } => vec![$( (stringify!($field), $field) ),*], )* }
            }
        }

        impl fmt::Display for Kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self { $( Self::$name { $($field),* } => write!(f, $text), )* }
            }
        }
    };
}

kinds! {
    // Superblock and descriptors.
    NoFilesystem {} Fatal "no ext2, ext3 or ext4 filesystem is there";
    SuperblockInvalid {} Fatal "the superblock is corrupt and no backup of it is usable";
    BackupUsed { block } Note "the primary superblock or its descriptors are unusable; the backup at block {block} is used";
    PrimaryRefused {} Fatal "the primary superblock cannot be right; a backup may be: try -b with the number of its block";
    SuperblockChecksum { stored, computed } Error "superblock checksum {stored:#010x} should be {computed:#010x}";
    FeatureUnknown { incompat } Fatal "unsupported incompatible features {incompat:#x}";
    EncodingUnknown { encoding } Fatal "names without case have unknown encoding {encoding}";
    FeatureUnknownCompat { compat } Fatal "unknown compatible features {compat:#x}";
    FeatureUnknownRo { ro_compat } Fatal "unsupported read-only-compatible features {ro_compat:#x}";
    SizeBeyondDevice { blocks, device } Error "the filesystem has {blocks} blocks, the device {device}";
    FeaturesOnRevision0 {} Error "features are set on a filesystem of revision 0";
    DescSizeSmall { value } Note "s_desc_size {value} is less than a descriptor has; there is only one";
    FirstMetaBg { value, max } Note "s_first_meta_bg {value} is beyond {max}";
    ReservedBlocks { value, max } Error "{value} reserved blocks are more than {max}";
    SuperblockField { offset, value } Error "superblock field at byte {offset:#x} has invalid value {value}";
    ReservedGdtUnused { blocks } Note "{blocks} reserved descriptor blocks without resize_inode";
    ResizeInodeAndMetaBg {} Error "resize_inode and meta_bg exclude each other";
    GdtAndMetadataCsum {} Note "metadata_csum makes uninit_bg superfluous";
    SixtyFourBitNeeded {} Note "extents without 64bit on a large filesystem";
    NotUnmounted {} Note "the filesystem was not cleanly unmounted";
    NeedsRecovery {} Note "the journal has not been replayed; the filesystem is checked as it is without it";
    DescriptorUnreadable { block } Fatal "descriptor block {block} cannot be read";
    DescriptorChecksum { stored, computed } Note "descriptor checksum {stored:#06x} should be {computed:#06x}";
    BlockBitmapOutside { block } Error "the block bitmap at {block} is outside the group";
    InodeBitmapOutside { block } Error "the inode bitmap at {block} is outside the group";
    InodeTableOutside { block } Error "the inode table at {block} is outside the group";
    UninitWithoutFeature {} Note "marked uninitialised without the feature";
    ItableUnused { value, max } Error "{value} unused inodes are more than {max}";
    MetadataCollision { block } Error "bitmaps or inode table conflict with other metadata at block {block}";
    FlexGroups { value } Error "s_log_groups_per_flex is {value}";
    MmpMagic {} Fatal "the multiple-mount-protection block has a bad magic number";
    MmpChecksum {} Fatal "the multiple-mount-protection block has a bad checksum";
    MmpBlock { block } Error "the multiple-mount-protection block {block} is outside the filesystem";
    MmpInUse { sequence } Fatal "the filesystem is in use on another node, or was when that died (sequence {sequence:#x})";
    // Journal.
    JournalBackupUsed { ino } Note "inode {ino} cannot be a journal as it is; the copy of its map in the superblock can";
    JournalInode { ino } Error "inode {ino} cannot be a journal";
    JournalSuperblock {} Fatal "the journal superblock is corrupt";
    JournalErrno { errno } Note "the journal recorded error {errno}";
    JournalUnsupported {} Fatal "the journal has unknown features";
    JournalWithoutFeature { ino } Note "there is a journal inode {ino} without the has_journal feature";
    JournalExternalMissing {} Fatal "the external journal is not at hand";
    JournalDeviceSuperblock {} Fatal "the external journal has no usable superblock of a journal device";
    JournalDeviceOther {} Fatal "the external journal has another UUID than the filesystem asks for";
    JournalUserUnlisted {} Note "the external journal does not list the filesystem among its users";
    JournalDeviceAlone {} Note "this is an external journal; -j checks it with its filesystem";
    JournalDeviceNotEmpty {} Note "the journal has data; its filesystem says whether they are to be replayed";
    RecoveryWithoutJournal {} Error "needs_recovery is set without a journal";
    RecoveryFlagMissing {} Note "the journal has data, but needs_recovery is clear";
    JournalShort { blocks } Fatal "the journal has only {blocks} blocks";
    JournalV1Fields {} Note "the journal superblock has version 2 fields but version 1";
    JournalUsers { users } Fatal "the journal has {users} users";
    OrphanListBad { ino } Note "the orphan list leads to inode {ino}, which cannot be on it";
    OrphanPresentClean {} Error "orphan_present is set, but the orphan file is empty";
    OrphanFileBad { block } Error "orphan file block {block} is corrupt";
    OrphanFileHole { lblk } Error "the orphan file has a hole at logical block {lblk}";
    OrphanFileInode { ino } Error "inode {ino} cannot be an orphan file";
    OrphanFileHidden { ino } Note "orphan file inode {ino} is set without the feature";
    OrphanPresentWithoutFile {} Error "orphan_present is set without the orphan_file feature";
    OrphanFileNotClean {} Error "the orphan file holds inodes, but orphan_present is clear";
    QuotaInode { ino } Error "inode {ino} cannot be a quota file";
    QuotaInodeHidden { ino } Note "quota inode {ino} is set without the quota feature";
    ResizeInode {} Note "the resize inode is not valid";
    BadBlockInMetadata { block } Error "block {block} of the filesystem's own metadata is on the bad-block list";
    BadBlockReserved { block } Note "block {block}, which can be done without, is on the bad-block list";
    LastBlockUninit {} Note "the last group's block bitmap is uninitialised";
    // Inodes.
    ReadError {} Error "cannot be read";
    InodeTableUnreadable { block } Error "the inode table cannot be read at block {block}";
    InodeChecksum { stored, computed } Error "inode checksum {stored:#010x} should be {computed:#010x}";
    InodeGarbage {} Error "the inode seems to be garbage";
    RootNotDirectory {} Error "the root inode is not a directory";
    RootMissing {} Error "the root inode is not allocated";
    RootDtime {} Error "the root inode has a deletion time";
    SystemInodeNotClear {} Error "the inode is not in use as a journal or quota file, but is not clear";
    BadBlocksInode {} Error "the bad-blocks inode looks invalid";
    JournalMode { mode } Error "the journal inode has mode {mode:#o}";
    ReservedMode { mode } Error "the reserved inode has mode {mode:#o}";
    ZeroDtime {} Error "the inode is deleted but has no deletion time";
    DtimeSet { dtime } Error "the inode is in use but has a deletion time ({dtime})";
    WasOrphan {} Error "the inode was on the orphan list";
    Mode { mode } Error "mode {mode:#o} has no valid file type";
    ExtraIsize { value } Error "i_extra_isize {value} is invalid";
    Faddr { value } Error "i_faddr is {value}, should be 0";
    FileAclHigh { value } Error "the upper half of i_file_acl is {value}, should be 0";
    BlocksHigh { value } Error "the upper half of i_blocks is {value}, should be 0";
    SizeHigh { value } Error "the upper half of i_size is {value}, should be 0";
    Fragments {} Error "fragment fields are set";
    Imagic {} Error "the imagic flag is set without the feature";
    InlineWithoutFeature {} Error "the inline-data flag is set without the feature";
    InlineBad {} Error "inline data is corrupt";
    InlineWithoutAttribute {} Error "inline data without the attribute system.data";
    InlineAndExtents {} Error "both the inline-data and the extents flag are set";
    ExtentsWithoutFeature {} Error "the extents flag is set without the feature";
    ExtentsFlagMissing {} Error "the inode holds an extent tree but lacks the extents flag";
    ExtentsOnSpecial {} Error "a special file has the extents or inline-data flag";
    EncryptWithoutFeature {} Error "the encrypt flag is set without the feature";
    EncryptWithoutAttribute {} Error "the encrypt flag is set without an encryption context";
    EncryptAttributeBad {} Error "the encryption context is corrupt";
    CasefoldWithoutFeature {} Error "the casefold flag is set without the feature";
    CasefoldNotDirectory {} Error "the casefold flag is set on something that is not a directory";
    VerityBad {} Note "the verity flag is set without the feature or not on a regular file";
    IndexNotDirectory {} Error "the index flag is set on something that is not a directory";
    IndexWithoutFeature {} Error "the index flag is set without the dir_index feature";
    SpecialSize { size } Error "a special file has size {size}";
    SpecialFlags {} Note "a special file has immutable or append-only flags";
    DeviceNumber {} Note "the device number is invalid";
    SymlinkBad {} Error "the symbolic link is invalid";
    Size { size, should } Error "i_size is {size}, should be {should}";
    InlineSize { size, room } Note "i_size is {size}, inline data has room for {room}";
    SizeHuge { size } Error "i_size {size} is larger than the map can hold";
    Blocks { blocks, should } Error "i_blocks is {blocks}, should be {should}";
    DirectoryNoBlocks {} Error "the directory has no blocks";
    DirectorySize { size } Error "a directory of {size} bytes";
    LargeFileFeature { count } Error "{count} large files without the large_file feature";
    BlockIllegal { lblk, block } Error "logical block {lblk} is at illegal block {block}";
    IndirectIllegal { block } Error "an indirect block is at illegal block {block}";
    ExtentHeader { block } Error "corrupt extent header in block {block} (0: in the inode)";
    ExtentChecksum { block } Error "extent block {block} has a bad checksum";
    ExtentInvalid { lblk, block, len } Error "invalid extent: logical block {lblk}, block {block}, length {len}";
    ExtentOrder { lblk } Error "extents out of order at logical block {lblk}";
    ExtentIndexStart { lblk, should } Error "an index says logical block {lblk}, its node starts at {should}";
    ExtentOutOfBounds { lblk } Error "extents at logical block {lblk} lie beyond what their index covers";
    ExtentUnwrittenInDirectory { lblk } Error "the directory has an unwritten extent at logical block {lblk}";
    ExtentTreeDeep { depth, should } Note "the extent tree has depth {depth} where {should} is enough";
    ExtentEmptyNode { block } Error "extent block {block} is empty";
    ExtentCluster { lblk, block } Error "logical block {lblk} and block {block} disagree in their cluster offset";
    UnwrittenInUninit {} Note "a tree block could be left out";
    XattrIbody { offset } Error "an attribute in the inode is corrupt at byte {offset}";
    XattrBlockIllegal { block } Error "the attribute block {block} is illegal";
    XattrBlockCorrupt { block } Error "the attribute block {block} is corrupt";
    XattrBlockChecksum { block } Error "the attribute block {block} has a bad checksum";
    XattrHash { offset } Error "the attribute at byte {offset} has a bad hash";
    XattrCollision { offset } Error "attribute values overlap at byte {offset}";
    XattrBlockWithoutFeature { block } Error "attribute block {block} without the ext_attr feature";
    XattrValueInode { ino } Error "attribute value inode {ino} is invalid";
    XattrValueFlag { ino } Error "attribute value inode {ino} lacks its flag or is damaged";
    XattrName { offset } Error "the attribute at byte {offset} has an invalid name";
    // Shared blocks.
    SharedBlock { block } Error "block {block} is claimed more than once";
    SharedWithMetadata { block } Error "block {block} belongs to the filesystem's own metadata";
    // Directories.
    DirHole {} Error "the directory has an unallocated block";
    DirUnreadable {} Error "the directory block cannot be read";
    DirCorrupt {} Error "the directory is corrupt here";
    DirNoTail {} Error "the directory block has no checksum record";
    DirChecksum {} Error "the directory block has a bad checksum";
    DotMissing {} Error "'.' is missing";
    DotdotMissing {} Error "'..' is missing";
    DotInode { ino } Error "'.' names inode {ino}";
    DotBig {} Note "the entry for '.' is too big";
    DotDuplicate {} Error "a second '.'";
    DotdotDuplicate {} Error "a second '..'";
    NulInDot {} Error "'.' or '..' is not terminated";
    EntryInode { ino } Error "the entry names invalid inode {ino}";
    EntryUnused { ino } Error "the entry names unused inode {ino}";
    EntryUninit { ino } Error "the entry names inode {ino}, which lies in an uninitialised part";
    EntryBadInode { ino } Error "the entry names bad inode {ino}";
    EntryEaInode { ino } Note "the entry names attribute value inode {ino}";
    EntrySelf { ino } Error "the entry is a link to '.' (inode {ino})";
    EntryRoot {} Error "the entry is a link to the root";
    EntryDirectoryLink { ino } Error "the entry is a second link to directory {ino}";
    EntryName {} Error "the name has illegal characters";
    EntryEmptyName {} Error "the name is empty";
    EntryFileType { stored, should } Error "file type {stored} should be {should}";
    EntryFileTypeSet {} Error "a file type is set without the feature";
    EntryFileTypeMissing { should } Note "no file type, should be {should}";
    EntryDuplicate { ino } Error "the name (inode {ino}) is not unique";
    EncryptedName {} Error "an encrypted name is too short";
    UnencryptedInEncrypted { ino } Error "the directory is encrypted, but inode {ino} is not, or by another policy";
    CasefoldName {} Error "the name does not fit the directory's encoding";
    HtreeRoot {} Error "the index root is invalid";
    HtreeNode {} Error "the index node is corrupt";
    HtreeNodeChecksum {} Error "the index block has a bad checksum";
    HtreeReferencedTwice {} Error "the block is referenced twice by the index";
    HtreeNotReferenced {} Error "the block is not referenced by the index";
    HtreeMinHash {} Error "the block has names below its hash range";
    HtreeMaxHash {} Error "the block has names above its hash range";
    HtreeBadBlock { lblk } Error "the index refers to block {lblk}, which the directory does not have";
    HtreeDepth {} Error "the index block lies at another depth";
    // Connectivity.
    Unconnected {} Error "the directory is not connected to the root";
    DotdotWrong { is, should } Error "'..' is inode {is}, should be {should}";
    DirectoryLoop {} Error "the directory is part of a loop";
    LostFoundMissing {} Note "/lost+found is missing";
    LostFoundBad {} Error "/lost+found is not a directory, or encrypted";
    // References.
    LinkCount { links, should } Error "the link count is {links}, should be {should}";
    Unattached {} Error "no directory names the inode";
    XattrRefcount { refcount, should } Error "the attribute block's reference count is {refcount}, should be {should}";
    EaInodeRefcount { refcount, should } Error "the attribute value inode's reference count is {refcount}, should be {should}";
    // Summary.
    BlockBitmapUnreadable { block } Error "the block bitmap at {block} cannot be read";
    InodeBitmapUnreadable { block } Error "the inode bitmap at {block} cannot be read";
    BlockBitmapChecksum {} Error "the block bitmap does not match its checksum";
    InodeBitmapChecksum {} Error "the inode bitmap does not match its checksum";
    BlockMarkedFree { block, count } Error "{count} blocks from {block} are in use but marked free";
    BlockMarkedUsed { block, count } Error "{count} blocks from {block} are free but marked in use";
    InodeMarkedFree { ino, count } Error "{count} inodes from {ino} are in use but marked free";
    InodeMarkedUsed { ino, count } Error "{count} inodes from {ino} are free but marked in use";
    BlockUninitInUse { count } Error "{count} blocks are in use but the group is marked BLOCK_UNINIT";
    InodeUninitInUse { ino } Error "inode {ino} is in use but the group is marked INODE_UNINIT";
    BlockBitmapPadding {} Error "the padding of the block bitmap is not set";
    InodeBitmapPadding {} Error "the padding of the inode bitmap is not set";
    GroupFreeBlocks { stored, counted } Error "{stored} free blocks, counted {counted}";
    GroupFreeInodes { stored, counted } Error "{stored} free inodes, counted {counted}";
    GroupDirectories { stored, counted } Error "{stored} directories, counted {counted}";
    FreeBlocks { stored, counted } Note "{stored} free blocks, counted {counted}";
    FreeInodes { stored, counted } Note "{stored} free inodes, counted {counted}";
    // Quota.
    QuotaUnreadable {} Error "the quota file cannot be read";
    QuotaCorrupt {} Error "the quota file is corrupt";
    QuotaTree {} Note "the quota file's tree has bad references";
    QuotaUsage { id, space, inodes, counted_space, counted_inodes } Error "id {id}: {space} bytes and {inodes} inodes, counted {counted_space} and {counted_inodes}";
}

/// One finding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What part of the check made it.
    pub pass: Pass,
    /// Which structure it is about.
    pub place: Place,
    /// What is wrong.
    pub kind: Kind,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.kind)
    }
}
