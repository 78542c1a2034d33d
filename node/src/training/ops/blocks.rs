//! DepthToSpace and SpaceToDepth: blocks of an image against channels.
//! Other operators that move numbers are in `shape` and `select`.

use super::super::TrainingError;
use super::super::engine::Engine;
use super::super::node::Node;
use super::super::value::TensorRef;
use super::{Built, reshape};

type Made<B> = Result<Built<B>, TrainingError>;

/// [N, C·b², H, W] to [N, C, H·b, W·b].
pub(super) fn depth_to_space<B: Engine>(node: &Node<'_>) -> Made<B> {
    node.expect_attributes(&["blocksize", "mode"])?;
    let (x, block, [n, c, h, w]) = blocks(node)?;
    let depth = block.checked_mul(block).and_then(|square| (c % square == 0).then_some(c / square));
    let depth = depth.ok_or_else(|| node.error(format!("{c} channels do not make blocks of {block}")))?;
    let (split, order) = match node.string("mode", "DCR")? {
        "DCR" => ([n, block, block, depth, h, w], [0, 3, 4, 1, 5, 2]),
        "CRD" => ([n, depth, block, block, h, w], [0, 1, 4, 2, 5, 3]),
        other => return Err(node.error(format!("its mode {other:?} is unknown"))),
    };
    Ok(regrouped(x, split, order, vec![n, depth, h * block, w * block]))
}

/// [N, C, H·b, W·b] to [N, C·b², H, W].
pub(super) fn space_to_depth<B: Engine>(node: &Node<'_>) -> Made<B> {
    node.expect_attributes(&["blocksize", "mode"])?;
    let (x, block, [n, c, h, w]) = blocks(node)?;
    if h % block != 0 || w % block != 0 {
        return Err(node.error(format!("{h} × {w} does not divide into blocks of {block}")));
    }
    let split = [n, c, h / block, block, w / block, block];
    let order = match node.string("mode", "DCR")? {
        "DCR" => [0, 3, 5, 1, 2, 4],
        "CRD" => [0, 1, 3, 5, 2, 4],
        other => return Err(node.error(format!("its mode {other:?} is unknown"))),
    };
    Ok(regrouped(x, split, order, vec![n, c * block * block, h / block, w / block]))
}

fn blocks<'n>(node: &'n Node<'_>) -> Result<(&'n TensorRef, usize, [usize; 4]), TrainingError> {
    node.expect_inputs(1..=1)?;
    let x = node.tensor(0)?;
    let block = usize::try_from(node.int("blocksize", 0)?).ok().filter(|block| (1..=1 << 12).contains(block));
    match (block, <[usize; 4]>::try_from(x.shape.as_slice())) {
        (Some(block), Ok(shape)) => Ok((x, block, shape)),
        _ => Err(node.error(format!("its blocksize or its input of shape {:?} is out of range", x.shape))),
    }
}

fn regrouped<B: Engine>(x: &TensorRef, split: [usize; 6], order: [usize; 6], shape: Vec<usize>) -> Built<B> {
    let target = shape.clone();
    Built::unary(x, shape, move |x| reshape::<B>(B::float_permute(reshape::<B>(x, &split), &order), &target))
}
