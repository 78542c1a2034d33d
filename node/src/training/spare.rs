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
    /// Of gradients of weights, which are the same in each step.
    gradients: RefCell<Vec<Vec<T>>>,
    /// Lengths of those that are lent.
    lent: RefCell<Vec<usize>>,
}

impl<T> Spare<T> {
    pub(super) const fn new() -> Spare<T> {
        Spare {
            tensors: RefCell::new(Vec::new()),
            rooms: RefCell::new(Vec::new()),
            gradients: RefCell::new(Vec::new()),
            lent: RefCell::new(Vec::new()),
        }
    }

    fn clear(&self) {
        [&self.tensors, &self.rooms, &self.gradients].into_iter().for_each(|kept| kept.borrow_mut().clear());
        self.lent.borrow_mut().clear();
    }
}

/// So many numbers of tensors may be kept while memory is at its peak.
const LITTLE: usize = 1 << 21;
/// Larger rooms are not kept while memory is at its peak.
const LARGE_ROOM: usize = 8 * LITTLE;
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

/// Zeros for the gradient of a weight; [`give_gradient`] takes them back.
pub(super) fn gradient<T: Number>(len: usize) -> Vec<T> {
    if len < SMALLEST {
        return vec![T::zero(); len];
    }
    T::spare(|spare| {
        spare.lent.borrow_mut().push(len);
        let mut gradients = spare.gradients.borrow_mut();
        match gradients.iter().position(|values| values.len() == len) {
            Some(index) => {
                let mut values = gradients.swap_remove(index);
                values.fill(T::zero());
                values
            }
            None => vec![T::zero(); len],
        }
    })
}

/// Keeps the memory of a gradient that [`gradient`] gave, if nobody else has the tensor.
pub(super) fn give_gradient<T: Number + Element>(tensor: PlainTensor) {
    let len = tensor.layout().num_elements();
    let ours = T::spare(|spare| {
        let mut lent = spare.lent.borrow_mut();
        lent.iter().position(|lent| *lent == len).map(|index| lent.swap_remove(index))
    });
    if ours.is_some() && tensor.is_contiguous() && tensor.is_unique() {
        let values = tensor.into_data().try_into_vec::<T>().unwrap_or_default();
        if values.len() == len {
            T::spare(|spare| spare.gradients.borrow_mut().push(values));
        }
    }
}

/// Gives tensors' memory back to the allocator, where it is much: before what comes takes other sizes, and where memory is at its
/// peak. Usual rooms and gradients, which are as large as the weights, stay for the next step.
pub(super) fn clear() {
    fn of<T>(spare: &Spare<T>) {
        let mut tensors = spare.tensors.borrow_mut();
        if tensors.iter().map(Vec::capacity).sum::<usize>() > LITTLE {
            tensors.clear();
        }
        spare.rooms.borrow_mut().retain(|room| room.len() <= LARGE_ROOM);
        // Gradients that did not come back by now were added to others.
        spare.lent.borrow_mut().clear();
    }
    f32::spare(of);
    f64::spare(of);
}

/// Gives all that this thread keeps back when it is dropped: a run has one.
pub(super) struct Kept;

impl Drop for Kept {
    fn drop(&mut self) {
        f32::spare(Spare::clear);
        f64::spare(Spare::clear);
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
        // A gradient's memory comes back as zeros; what was not lent is not kept.
        let slope = vec![3f32; len];
        assert_eq!(gradient::<f32>(len), vec![0.0; len]);
        let place = slope.as_ptr();
        for slope in [slope, vec![4f32; len]] {
            give_gradient::<f32>(from(slope, vec![len]));
        }
        let again = gradient::<f32>(len);
        assert_eq!((again.as_ptr(), &again), (place, &vec![0.0; len]));
        assert!(f32::spare(|spare| spare.gradients.borrow().is_empty()));
        drop(kept);
        assert!(f32::spare(|spare| spare.rooms.borrow().is_empty() && spare.lent.borrow().is_empty()));
        assert!(f32::spare(|spare| spare.tensors.borrow().is_empty()));
    }
}
