//! Frames of the CQL protocol, version 4.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// What stands before the body of a frame: version, flags, stream (two bytes), opcode, length of the body (four).
pub const HEADER: usize = 9;
/// Where in it the opcode is.
pub const OPCODE: usize = 4;

/// One frame, with its header.
pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; HEADER];
    from.read_exact(&mut frame).await?;
    let length = u32::from_be_bytes([frame[5], frame[6], frame[7], frame[8]]);
    frame.resize(HEADER + length as usize, 0);
    from.read_exact(&mut frame[HEADER..]).await?;
    Ok(frame)
}
