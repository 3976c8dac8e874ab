//! Real mounts: the transport with the null server and with servers that misbehave.

mod null;
mod odd;
mod served;
