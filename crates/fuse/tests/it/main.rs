//! Real mounts: the transport with the null server and with servers that misbehave.

mod ext4;
mod null;
mod odd;
mod served;
