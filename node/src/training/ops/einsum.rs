//! Einsum of one or two tensors: sums, one batched matrix product, and a transposition of what is left.
//! Plain matrix products are in `linear`.

use super::super::TrainingError;
use super::super::backend::Tensor;
use super::super::engine::Engine;
use super::super::node::Node;
use super::{Built, Kernel, elements, reshape};

/// An operand's letters and sizes.
type Letters = Vec<(char, usize)>;

pub(super) fn einsum<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["equation"])?;
    node.expect_inputs(1..=2)?;
    let equation: String = node.string("equation", "")?.chars().filter(|c| !c.is_whitespace()).collect();
    let refused = || node.error(format!("training does not have the equation {equation:?}"));
    let (left, right) = equation.split_once("->").ok_or_else(refused)?;
    let operands: Vec<&str> = left.split(',').collect();
    let inputs = (0..node.input_count()).map(|index| node.tensor(index).cloned()).collect::<Result<Vec<_>, _>>()?;
    let mut letters: Vec<Letters> = Vec::new();
    for (operand, input) in operands.iter().zip(&inputs) {
        let unique = operand.chars().enumerate().all(|(at, c)| c.is_ascii_alphabetic() && !operand[..at].contains(c));
        if !unique || operand.len() != input.shape.len() {
            return Err(refused());
        }
        letters.push(operand.chars().zip(input.shape.iter().copied()).collect());
    }
    let size = |c: char| letters.iter().flatten().filter(|(letter, _)| *letter == c).map(|(_, size)| *size).max();
    let agrees = letters.iter().flatten().all(|(c, own)| size(*c) == Some(*own));
    let output: Option<Letters> = right.chars().map(|c| Some((c, size(c)?))).collect();
    let unique = right.chars().enumerate().all(|(at, c)| !right[..at].contains(c));
    let output = output.filter(|_| agrees && unique && operands.len() == inputs.len()).ok_or_else(refused)?;
    let shape: Vec<usize> = output.iter().map(|(_, size)| *size).collect();
    let kernel: Kernel<B> = match <[Letters; 2]>::try_from(letters) {
        Ok([a, b]) => {
            let plan = Product::new(a, b, output);
            Kernel::Binary(Box::new(move |x, y| plan.run::<B>(x, y)))
        }
        Err(mut one) => {
            let letters = one.pop().ok_or_else(refused)?;
            Kernel::Unary(Box::new(move |x| {
                let (x, kept) = sum_out::<B>(x, &letters, &output);
                arrange::<B>(x, &kept, &output)
            }))
        }
    };
    Ok(Built::step(inputs, shape, kernel))
}

/// Two operands as one batched product.
struct Product {
    a: Letters,
    b: Letters,
    output: Letters,
}

impl Product {
    fn new(a: Letters, b: Letters, output: Letters) -> Product {
        Product { a, b, output }
    }

    fn run<B: Engine>(&self, x: Tensor<B>, y: Tensor<B>) -> Tensor<B> {
        let wanted = |other: &Letters| [other.as_slice(), &self.output].concat();
        let (x, a) = sum_out::<B>(x, &self.a, &wanted(&self.b));
        let (y, b) = sum_out::<B>(y, &self.b, &wanted(&a));
        let both = |kept: bool| -> Letters {
            a.iter().filter(|letter| b.contains(letter) && self.output.contains(letter) == kept).copied().collect()
        };
        let (batch, inner) = (both(true), both(false));
        let own = |mine: &Letters, other: &Letters| -> Letters {
            mine.iter().filter(|letter| !other.contains(letter)).copied().collect()
        };
        let (rows, columns) = (own(&a, &b), own(&b, &a));
        let len = |letters: &Letters| elements(&letters.iter().map(|(_, size)| *size).collect::<Vec<_>>());
        let x = arrange::<B>(x, &a, &[&batch[..], &rows, &inner].concat());
        let y = arrange::<B>(y, &b, &[&batch[..], &inner, &columns].concat());
        let x = reshape::<B>(x, &[len(&batch), len(&rows), len(&inner)]);
        let y = reshape::<B>(y, &[len(&batch), len(&inner), len(&columns)]);
        let found = [&batch[..], &rows, &columns].concat();
        let product = reshape::<B>(B::float_matmul(x, y), &found.iter().map(|(_, size)| *size).collect::<Vec<_>>());
        arrange::<B>(product, &found, &self.output)
    }
}

/// Sums over the letters that nothing else has.
fn sum_out<B: Engine>(x: Tensor<B>, letters: &Letters, wanted: &[(char, usize)]) -> (Tensor<B>, Letters) {
    let is_wanted = |letter: &(char, usize)| wanted.iter().any(|(c, _)| *c == letter.0);
    let kept: Letters = letters.iter().filter(|letter| is_wanted(letter)).copied().collect();
    if kept.len() == letters.len() {
        return (x, kept);
    }
    let axes = letters.iter().enumerate().filter(|(_, letter)| !is_wanted(letter)).map(|(axis, _)| axis);
    let summed = axes.fold(x, |x, axis| B::float_sum_dim(x, axis));
    (reshape::<B>(summed, &kept.iter().map(|(_, size)| *size).collect::<Vec<_>>()), kept)
}

/// Brings axes into another order.
fn arrange<B: Engine>(x: Tensor<B>, from: &[(char, usize)], to: &[(char, usize)]) -> Tensor<B> {
    let order: Vec<usize> = to.iter().filter_map(|(c, _)| from.iter().position(|(letter, _)| letter == c)).collect();
    if order.iter().copied().eq(0..from.len()) { x } else { B::float_permute(x, &order) }
}
