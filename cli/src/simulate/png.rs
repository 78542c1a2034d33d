//! Writes a picture as a PNG file. Nothing is drawn here.
//! Source: W3C, Portable Network Graphics (PNG) Specification (Third Edition), sections 5, 7 and 11.

/// The file's bytes. `pixels` are `[height, width, 3]`, 8 bits each, red first.
pub(super) fn encode(pixels: &[u8], width: u32, height: u32) -> Vec<u8> {
    const EIGHT_BITS: u8 = 8;
    const TRUE_COLOUR: u8 = 2;
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut header = Vec::new();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([EIGHT_BITS, TRUE_COLOUR, 0, 0, 0]);
    chunk(&mut file, b"IHDR", &header);
    chunk(&mut file, b"IDAT", &fdeflate::compress_to_vec(&filtered(pixels, width as usize * 3)));
    chunk(&mut file, b"IEND", &[]);
    file
}

/// Each row by filter 2, Up: the difference to the row above, so that plain areas become zeros.
fn filtered(pixels: &[u8], row_len: usize) -> Vec<u8> {
    const UP: u8 = 2;
    let mut out = Vec::with_capacity(pixels.len() + pixels.len() / row_len.max(1) + 1);
    let mut above = vec![0; row_len];
    for row in pixels.chunks_exact(row_len.max(1)) {
        out.push(UP);
        out.extend(row.iter().zip(&above).map(|(value, above)| value.wrapping_sub(*above)));
        above.copy_from_slice(row);
    }
    out
}

fn chunk(file: &mut Vec<u8>, name: &[u8; 4], data: &[u8]) {
    file.extend((data.len() as u32).to_be_bytes());
    let mut crc = crc32fast::Hasher::new();
    crc.update(name);
    crc.update(data);
    file.extend(name);
    file.extend(data);
    file.extend(crc.finalize().to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_areas_become_zeros_and_a_change_shows_where_it_is() {
        assert_eq!(filtered(&[9, 9, 9, 9, 9, 7], 3), [2, 9, 9, 9, 2, 0, 0, 254]);
    }

    #[test]
    fn the_end_of_every_file_is_the_empty_chunk_with_its_known_checksum() {
        let file = encode(&[255; 12], 2, 2);
        assert!(file.ends_with(b"\0\0\0\0IEND\xae\x42\x60\x82"));
        assert_eq!(file.get(8..29), Some(&b"\0\0\0\x0dIHDR\0\0\0\x02\0\0\0\x02\x08\x02\0\0\0"[..]));
    }
}
