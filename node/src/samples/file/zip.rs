//! The part of the ZIP format that NumPy writes: stored and deflated entries, found by the central directory.
//! Source: PKWARE APPNOTE 6.3.10, sections 4.3.7, 4.3.12 and 4.3.16. No ZIP64 (files here are below 4 GiB), no encryption.

use super::MAX_VALUES;

/// Most entries that an archive may have.
const MAX_ENTRIES: usize = 1024;
/// Most bytes of one entry: the largest number of values, each 8 bytes wide, and a header.
const MAX_CONTENT: usize = MAX_VALUES * 8 + (1 << 20);

/// One file of the archive, as its central directory describes it.
pub(super) struct Entry {
    /// Its name, without the ending `.npy`.
    pub(super) name: String,
    method: u16,
    encrypted: bool,
    crc32: u32,
    compressed: usize,
    uncompressed: usize,
    header_at: usize,
}

/// Lists the archive's files. Problems say what is wrong, for the caller to add the file's name.
pub(super) fn entries(bytes: &[u8]) -> Result<Vec<Entry>, String> {
    const END: [u8; 4] = *b"PK\x05\x06";
    const END_LEN: usize = 22;
    const MAX_COMMENT: usize = 0xffff;
    let from = bytes.len().saturating_sub(END_LEN + MAX_COMMENT);
    let tail = &bytes[from..];
    let end = tail
        .windows(END.len())
        .rposition(|window| window == END)
        .ok_or("its end is missing; it is no archive or was cut off, so copy it again")?;
    let end = from + end;
    slice(bytes, end, END_LEN)?;
    let count = usize::from(u16_at(bytes, end + 10)?);
    let mut at = size_at(bytes, end + 16)?;
    if count > MAX_ENTRIES {
        return Err(format!("it holds {count} arrays, above the limit of {MAX_ENTRIES}"));
    }
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        const ENTRY: [u8; 4] = *b"PK\x01\x02";
        if slice(bytes, at, 4)? != ENTRY {
            return Err("its directory is damaged; copy the file again".to_owned());
        }
        let name_len = usize::from(u16_at(bytes, at + 28)?);
        let skip = usize::from(u16_at(bytes, at + 30)?) + usize::from(u16_at(bytes, at + 32)?);
        let name = String::from_utf8_lossy(slice(bytes, at + 46, name_len)?).into_owned();
        entries.push(Entry {
            name: name.strip_suffix(".npy").unwrap_or(&name).to_owned(),
            encrypted: u16_at(bytes, at + 8)? & 1 == 1,
            method: u16_at(bytes, at + 10)?,
            crc32: u32_at(bytes, at + 16)?,
            compressed: size_at(bytes, at + 20)?,
            uncompressed: size_at(bytes, at + 24)?,
            header_at: size_at(bytes, at + 42)?,
        });
        at = at + 46 + name_len + skip;
    }
    Ok(entries)
}

/// The bytes of one file, decompressed and checked.
pub(super) fn content(bytes: &[u8], entry: &Entry) -> Result<Vec<u8>, String> {
    const STORED: u16 = 0;
    const DEFLATED: u16 = 8;
    if entry.encrypted {
        return Err("is encrypted; save it without a password".to_owned());
    }
    if entry.uncompressed > MAX_CONTENT {
        return Err(format!("has {} bytes, above the limit of {MAX_CONTENT}; split the file", entry.uncompressed));
    }
    let names = usize::from(u16_at(bytes, entry.header_at.saturating_add(26))?)
        + usize::from(u16_at(bytes, entry.header_at.saturating_add(28))?);
    let data = slice(bytes, entry.header_at.saturating_add(30).saturating_add(names), entry.compressed)?;
    let content = match entry.method {
        STORED if entry.compressed == entry.uncompressed => data.to_vec(),
        STORED => return Err("has contradictory sizes; the file is damaged, so copy it again".to_owned()),
        DEFLATED => inflate(data, entry.uncompressed)?,
        other => return Err(format!("is compressed by method {other}; use numpy.savez or numpy.savez_compressed")),
    };
    if crc32fast::hash(&content) != entry.crc32 {
        return Err("does not match its checksum; the file is damaged, so copy it again".to_owned());
    }
    Ok(content)
}

/// Decompresses raw deflate data of exactly `expected` bytes.
pub(super) fn inflate(data: &[u8], expected: usize) -> Result<Vec<u8>, String> {
    // Deflate shrinks at most 1032 times, so that a small file cannot claim a large buffer.
    if expected / 1032 > data.len() {
        return Err("claims more bytes than its data can hold; the file is damaged, so copy it again".to_owned());
    }
    let mut content = vec![0; expected];
    let written =
        miniz_oxide::inflate::decompress_slice_iter_to_slice(&mut content, std::iter::once(data), false, true);
    match written {
        Ok(written) if written == expected => Ok(content),
        _ => Err("cannot be decompressed; the file is damaged, so copy it again".to_owned()),
    }
}

fn slice(bytes: &[u8], at: usize, len: usize) -> Result<&[u8], String> {
    at.checked_add(len)
        .and_then(|end| bytes.get(at..end))
        .ok_or_else(|| "it is cut off; copy the file again".to_owned())
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, String> {
    let bytes = slice(bytes, at, 2)?;
    Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, String> {
    let bytes = slice(bytes, at, 4)?;
    Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

fn size_at(bytes: &[u8], at: usize) -> Result<usize, String> {
    match u32_at(bytes, at)? {
        u32::MAX => Err("it uses ZIP64, which files of this size do not need; save it with numpy.savez".to_owned()),
        size => usize::try_from(size).map_err(|_| "it is too large for this machine".to_owned()),
    }
}
