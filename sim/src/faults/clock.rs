//! The virtual clock: what happens next. Equal times keep the order in which they were planned, so that runs repeat.
//! What happens is `world`'s; the hosts' own clocks, which may jump, are in `env`.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Milliseconds of virtual time since the run began.
pub type Ms = u64;

/// What is still to happen, by time.
#[derive(Debug)]
pub struct Queue<E> {
    heap: BinaryHeap<Reverse<Entry<E>>>,
    planned: u64,
}

impl<E> Queue<E> {
    /// Plans something.
    pub fn push(&mut self, at: Ms, what: E) {
        self.planned += 1;
        self.heap.push(Reverse(Entry { at, order: self.planned, what }));
    }

    /// What happens next, and when.
    pub fn pop(&mut self) -> Option<(Ms, E)> {
        self.heap.pop().map(|Reverse(entry)| (entry.at, entry.what))
    }
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Queue { heap: BinaryHeap::new(), planned: 0 }
    }
}

#[derive(Debug)]
struct Entry<E> {
    at: Ms,
    order: u64,
    what: E,
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Entry<E> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_happen_in_order_of_time_and_then_of_planning() {
        let mut queue = Queue::default();
        for (at, what) in [(5, 'c'), (1, 'a'), (5, 'd'), (1, 'b')] {
            queue.push(at, what);
        }
        let mut order = Vec::new();
        while let Some(next) = queue.pop() {
            order.push(next);
        }
        assert_eq!(order, [(1, 'a'), (1, 'b'), (5, 'c'), (5, 'd')]);
    }
}
