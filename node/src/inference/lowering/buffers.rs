//! Plans the buffers of a program: values that are not alive at the same time share one.
//! What the values are, and running steps over them, is `program`'s.

use std::collections::BTreeSet;

use super::graph::Refusal;
use super::kernels::SLACK;
use super::program::{Id, Value};

/// Most bytes of all buffers for one sample.
pub(super) const MAX_BYTES: u64 = 4 << 30;

/// Where values lie.
pub(super) struct Buffers {
    /// Buffer of each value but the input.
    pub places: Vec<usize>,
    /// Elements a sample of each buffer; its kind.
    pub buffers: Vec<Value>,
    /// Bytes of all of them for one sample.
    pub bytes: u64,
}

/// A value's place is free again after its last reader. `reads[i]` are the values that give value `i + 1`; value 0, the input,
/// needs no buffer. Refused: more than [`MAX_BYTES`] in all.
pub(super) fn plan(reads: &[Vec<Id>], values: &[Value], output: Id) -> Result<Buffers, Refusal> {
    let mut last = vec![0; values.len()];
    for (index, reads) in reads.iter().enumerate() {
        for &id in reads {
            last[id] = index;
        }
    }
    last[output] = reads.len();
    let mut buffers: Vec<Value> = Vec::new();
    let mut places = vec![usize::MAX; values.len()];
    // By kind and size.
    let mut free: BTreeSet<(bool, usize, usize)> = BTreeSet::new();
    for (index, reads) in reads.iter().enumerate() {
        let value = values[index + 1];
        // The nearest in size, so that a small value does not hold a large buffer.
        let start = (value.float, value.len, 0);
        let above = free.range(start..).next().filter(|found| found.0 == value.float);
        let below = free.range(..start).next_back().filter(|found| found.0 == value.float);
        let chosen = [above, below].into_iter().flatten().min_by_key(|found| found.1.abs_diff(value.len)).copied();
        let place = match chosen {
            Some(found) => {
                free.remove(&found);
                buffers[found.2].len = found.1.max(value.len);
                found.2
            }
            None => {
                buffers.push(value);
                buffers.len() - 1
            }
        };
        places[index + 1] = place;
        for &id in reads.iter().chain([&(index + 1)]) {
            // One that is read twice is freed once: the set holds it once.
            if id != 0 && last[id] <= index {
                free.insert((buffers[places[id]].float, buffers[places[id]].len, places[id]));
            }
        }
    }
    let bytes = |buffer: &Value| if buffer.float { buffer.len as u64 * 4 } else { buffer.len as u64 + SLACK as u64 };
    let bytes = buffers.iter().try_fold(0u64, |sum, buffer| sum.checked_add(bytes(buffer)));
    match bytes.filter(|&bytes| bytes <= MAX_BYTES) {
        Some(bytes) => Ok(Buffers { places, buffers, bytes }),
        None => Err(format!("a sample needs more than {MAX_BYTES} bytes for its values")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn codes(len: usize) -> Value {
        Value { len, float: false }
    }

    #[test]
    fn a_chain_takes_two_buffers_and_no_value_lies_where_another_still_lives() {
        let reads: Vec<Vec<Id>> = (0..10).map(|index| vec![index]).collect();
        let plan = plan(&reads, &[codes(8); 11], 10).unwrap();
        assert_eq!((plan.buffers.len(), plan.bytes), (2, 2 * (8 + SLACK as u64)));
        assert!(plan.places[1..].windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn values_that_live_together_and_take_more_than_the_limit_are_refused() {
        let all: Vec<Id> = (1..=16).collect();
        let reads: Vec<Vec<Id>> = (0..16).map(|_| vec![0]).chain([all]).collect();
        let mut values = vec![codes(1 << 28); 18];
        let error = plan(&reads, &values, 17).err().unwrap();
        assert!(error.contains("4294967296 bytes"), "{error}");
        values[1..].fill(codes(1 << 27));
        assert!(plan(&reads, &values, 17).unwrap().bytes > 17 << 27);
    }

    #[test]
    fn a_hundred_thousand_free_buffers_are_searched_in_no_time() {
        let count = 100_000;
        let all: Vec<Id> = (1..=count).collect();
        let reads: Vec<Vec<Id>> =
            (0..count).map(|_| vec![0]).chain([all]).chain((0..count).map(|index| vec![count + 1 + index])).collect();
        let values: Vec<Value> = (0..reads.len() + 1).map(|index| codes(index % 1000)).collect();
        let start = std::time::Instant::now();
        let plan = plan(&reads, &values, reads.len()).unwrap();
        assert_eq!(plan.buffers.len(), count + 1);
        assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
    }
}
