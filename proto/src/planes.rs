//! Sorts the bytes of 4-byte numbers by their significance, so that alike bytes lie together and compress.
//! What the numbers mean, and how they are compressed, is the callers' matter.

/// Splits 4-byte groups into four planes of a quarter each: all first bytes, all second ones, and so on. `planes` is as
/// long as `groups`; bytes after the last whole group keep their place at the end.
pub(crate) fn split(groups: &[u8], planes: &mut [u8]) {
    let (groups, rest) = groups.as_chunks::<4>();
    let (planes, end) = planes.split_at_mut(groups.len() * 4);
    if !groups.is_empty() {
        let mut planes = planes.chunks_exact_mut(groups.len());
        let mut plane = || planes.next().unwrap_or_default();
        for ((((group, a), b), c), d) in groups.iter().zip(plane()).zip(plane()).zip(plane()).zip(plane()) {
            let number = u32::from_le_bytes(*group);
            *a = number as u8;
            *b = (number >> 8) as u8;
            *c = (number >> 16) as u8;
            *d = (number >> 24) as u8;
        }
    }
    end.copy_from_slice(rest);
}

/// Undoes [`split`]; both are of one length again.
pub(crate) fn join(planes: &[u8], groups: &mut [u8]) {
    let (groups, rest) = groups.as_chunks_mut::<4>();
    let (planes, end) = planes.split_at(groups.len() * 4);
    if !groups.is_empty() {
        let mut planes = planes.chunks_exact(groups.len());
        let mut plane = || planes.next().unwrap_or_default();
        for ((((group, a), b), c), d) in groups.iter_mut().zip(plane()).zip(plane()).zip(plane()).zip(plane()) {
            let number = u32::from(*a) | u32::from(*b) << 8 | u32::from(*c) << 16 | u32::from(*d) << 24;
            *group = number.to_le_bytes();
        }
    }
    rest.copy_from_slice(end);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_hold_the_bytes_by_significance_and_give_the_groups_again() {
        for len in [0, 1, 3, 4, 8, 11, 4096, 4099] {
            let groups: Vec<u8> = (0..len).map(|index| (index * 7 % 251) as u8).collect();
            let (mut planes, mut again) = (vec![0; len], vec![0; len]);
            split(&groups, &mut planes);
            let quarter = len / 4;
            for (index, byte) in groups.iter().enumerate() {
                let place = if index < quarter * 4 { index % 4 * quarter + index / 4 } else { index };
                assert_eq!(planes[place], *byte, "byte {index} of {len}");
            }
            join(&planes, &mut again);
            assert_eq!(again, groups);
        }
    }
}
