//! Block devices: image file, block device, memory, partition window, sparse overlay.
