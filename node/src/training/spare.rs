//! Memory of tensors that a step is done with, kept on the thread that runs the step for those to come: fresh memory costs a page
//! fault every 4 KiB and is cleared twice, which was a quarter of a step of MobileNetV2.

use std::cell::RefCell;

use burn::backend::Element;

use super::backend::PlainTensor;
use super::number::Number;

/// Smaller ones the allocator hands out again by itself, without a page fault.
const SMALLEST: usize = 1 << 14;

/// What is kept of one type.
pub(super) struct Spare<T> {
    /// Of tensors, of any length.
    tensors: RefCell<Vec<Vec<T>>>,
    /// What operations work in.
    rooms: RefCell<Vec<Vec<T>>>,
}

impl<T> Spare<T> {
    pub(super) const fn new() -> Spare<T> {
        Spare { tensors: RefCell::new(Vec::new()), rooms: RefCell::new(Vec::new()) }
    }
}

/// Rooms that one operation has at a time.
const ROOMS: usize = 3;

/// So many numbers for a result that is written whole: what they are is left over from other tensors.
pub(super) fn take<T: Number>(len: usize) -> Vec<T> {
    if len < SMALLEST {
        return vec![T::zero(); len];
    }
    let mut values = T::spare(|spare| {
        let mut spare = spare.tensors.borrow_mut();
        // The tightest that fits and does not waste a quarter.
        let fitting = spare.iter().enumerate().filter(|(_, values)| (len..=len + len / 4).contains(&values.capacity()));
        let tightest = fitting.min_by_key(|(_, values)| values.capacity()).map(|(index, _)| index);
        if tightest.is_none() {
            // What is made anew takes the place of what nobody has wanted.
            let mut gone = 0;
            spare.retain(|values| {
                let stays = gone >= len;
                gone += values.capacity();
                stays
            });
        }
        tightest.map(|index| spare.swap_remove(index))
    })
    .unwrap_or_default();
    if values.capacity() < len {
        return vec![T::zero(); len];
    }
    values.truncate(len);
    values.resize(len, T::zero());
    values
}

/// So many zeros.
pub(super) fn zeros<T: Number>(len: usize) -> Vec<T> {
    let mut values = take(len);
    values.fill(T::zero());
    values
}

/// Keeps a tensor's memory if nobody else has the tensor.
pub(super) fn give<T: Number + Element>(tensor: PlainTensor) {
    let len = tensor.layout().num_elements();
    let whole = tensor.is_contiguous() && tensor.bytes().len() == len * size_of::<T>();
    if len >= SMALLEST && whole && tensor.is_unique() {
        give_vec(tensor.into_data().try_into_vec::<T>().unwrap_or_default());
    }
}

/// Keeps a result's memory.
pub(super) fn give_vec<T: Number>(values: Vec<T>) {
    if values.capacity() >= SMALLEST {
        T::spare(|spare| spare.tensors.borrow_mut().push(values));
    }
}

/// Room for at least so many numbers, which an operation works in and gives back; what they are is left over.
pub(super) fn room<T: Number>(len: usize) -> Vec<T> {
    T::spare(|spare| {
        let mut rooms = spare.rooms.borrow_mut();
        let sizes = rooms.iter().enumerate().map(|(index, room)| (room.len(), index));
        if let Some((_, index)) = sizes.clone().filter(|(size, _)| *size >= len).min() {
            return rooms.swap_remove(index);
        }
        // All are too small: a new one takes the place of the largest.
        let largest = sizes.max().map(|(_, index)| index);
        drop(largest.map(|index| rooms.swap_remove(index)));
        vec![T::zero(); len]
    })
}

/// Keeps a room for the next operation.
pub(super) fn leave<T: Number>(room: Vec<T>) {
    T::spare(|spare| {
        let mut rooms = spare.rooms.borrow_mut();
        if rooms.len() < ROOMS {
            rooms.push(room);
        }
    });
}

/// Gives tensors' memory back to the allocator: before what comes takes other sizes, and where memory is at its peak.
pub(super) fn clear() {
    f32::spare(|spare| spare.tensors.borrow_mut().clear());
    f64::spare(|spare| spare.tensors.borrow_mut().clear());
}

/// While it lives, this thread's memory is kept for use; afterwards none is.
pub(super) struct Kept;

impl Drop for Kept {
    fn drop(&mut self) {
        clear();
        f32::spare(|spare| spare.rooms.borrow_mut().clear());
        f64::spare(|spare| spare.rooms.borrow_mut().clear());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::engine::from;

    #[test]
    fn memory_is_handed_on_and_what_is_shared_stays() {
        let len = 2 * SMALLEST;
        let (tensor, other) = (from(vec![1f32; len], vec![2, SMALLEST]), from(vec![2f32; len], vec![len]));
        let place = tensor.storage::<f32>().as_ptr();
        let shared = other.clone();
        give::<f32>(other);
        give::<f32>(tensor);
        assert_eq!(shared.storage::<f32>(), vec![2.0; len]);
        let taken = zeros::<f32>(len - 7);
        assert_eq!(taken.as_ptr(), place);
        assert_eq!(taken, vec![0.0; len - 7]);
        // Nothing of half the size or of more is made of it; its place is taken.
        for other in [len / 2, len + 1] {
            give_vec(vec![0f32; len]);
            assert!(take::<f32>(other).capacity() != len);
            assert!(f32::spare(|spare| spare.tensors.borrow().is_empty()));
        }
        give_vec(taken);
        let kept = Kept;
        let (small, large) = (room::<f32>(10), room::<f32>(len));
        let places = [small.as_ptr(), large.as_ptr()];
        [small, large].into_iter().for_each(leave);
        // The smaller of those that are large enough; one that is too small makes place.
        let (large, small) = (room::<f32>(11), room::<f32>(10));
        assert_eq!([small.as_ptr(), large.as_ptr()], places);
        leave(small);
        assert_eq!((room::<f32>(12).len(), f32::spare(|spare| spare.rooms.borrow().len())), (12, 0));
        [large, vec![0.0; 5]].into_iter().for_each(leave);
        drop(kept);
        assert!(f32::spare(|spare| spare.rooms.borrow().is_empty()));
        assert!(f32::spare(|spare| spare.tensors.borrow().is_empty()));
    }
}
