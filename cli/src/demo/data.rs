//! The demo's data: real handwritten digits, a stratified part that no node sees, and an uneven split of the rest.
//! Seeded throughout: the same seed gives the same rows to the same nodes.

use std::path::Path;

use anyhow::{Context, ensure};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Gamma};

/// 1797 digits of 8×8 pixels 0..=16 with their labels: UCI "Optical Recognition of Handwritten Digits", test part,
/// E. Alpaydin and C. Kaynak, CC BY 4.0.
const DIGITS: &str = include_str!("../../../models/zoo/digits.csv");
/// The small CNN that the demo trains, untrained, as PyTorch exports it.
pub(super) const MODEL: &[u8] = include_bytes!("../../../models/zoo/digits_cnn.onnx");
/// Digits that no node trains on.
pub(super) const HELD_OUT: usize = 360;
/// Classes.
pub(super) const CLASSES: usize = 10;
/// Values of one sample.
pub(super) const PIXELS: usize = 64;
/// Fewest samples of a node; a split that gives less is drawn again.
const LEAST_SAMPLES: usize = 20;
/// Concentration of the Dirichlet distribution: the smaller, the more uneven (Hsu et al. 2019).
const CONCENTRATION: f64 = 0.5;

/// One digit.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Digit {
    pub(super) pixels: Vec<f32>,
    pub(super) label: usize,
}

/// Who gets what.
#[derive(Debug)]
pub(super) struct Split {
    /// For measuring; no node trains on them.
    pub(super) held_out: Vec<Digit>,
    /// Each node's own.
    pub(super) nodes: Vec<Vec<Digit>>,
}

/// Splits the digits: 360 held out with every class in proportion, the rest by Dirichlet(0.5) over the nodes.
pub(super) fn split(nodes: usize, seed: u64) -> anyhow::Result<Split> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut classes: Vec<Vec<Digit>> = vec![Vec::new(); CLASSES];
    for digit in digits()? {
        classes.get_mut(digit.label).context("a label above 9 in the digits")?.push(digit);
    }
    let total: usize = classes.iter().map(Vec::len).sum();
    let mut held_out = Vec::new();
    for (class, digits) in classes.iter_mut().enumerate() {
        digits.shuffle(&mut rng);
        // Cumulative rounding, so that the parts add up to exactly 360.
        let upto = |c: usize| HELD_OUT * c / CLASSES;
        let share = (upto(class + 1) - upto(class)).min(digits.len());
        held_out.extend(digits.drain(..share));
    }
    ensure!(held_out.len() == HELD_OUT && total > HELD_OUT, "the digits are damaged");
    for _ in 0..1000 {
        let parts = dirichlet_parts(&classes, nodes, &mut rng)?;
        if parts.iter().all(|p| p.len() >= LEAST_SAMPLES) {
            return Ok(Split { held_out, nodes: parts });
        }
    }
    anyhow::bail!("{nodes} nodes are too many for {} digits: each needs {LEAST_SAMPLES}", total - HELD_OUT)
}

/// For each class, shares drawn from Dirichlet(0.5) over the nodes.
fn dirichlet_parts(classes: &[Vec<Digit>], nodes: usize, rng: &mut ChaCha8Rng) -> anyhow::Result<Vec<Vec<Digit>>> {
    let gamma = Gamma::new(CONCENTRATION, 1.0)?;
    let mut parts: Vec<Vec<Digit>> = vec![Vec::new(); nodes];
    for digits in classes {
        let draws: Vec<f64> = (0..nodes).map(|_| gamma.sample(rng)).collect();
        let sum: f64 = draws.iter().sum();
        let (mut cumulative, mut start) = (0.0, 0);
        for (part, draw) in parts.iter_mut().zip(&draws) {
            cumulative += draw / sum;
            let end = ((digits.len() as f64 * cumulative).round() as usize).clamp(start, digits.len());
            part.extend_from_slice(&digits[start..end]);
            start = end;
        }
    }
    for part in &mut parts {
        part.shuffle(rng);
    }
    Ok(parts)
}

/// Writes digits as a node reads them.
pub(super) fn write_csv(path: &Path, digits: &[Digit]) -> anyhow::Result<()> {
    let mut text: String = (0..PIXELS).map(|i| format!("pixel{i},")).collect();
    text.push_str("label\n");
    for digit in digits {
        digit.pixels.iter().for_each(|p| text.push_str(&format!("{p},")));
        text.push_str(&format!("{}\n", digit.label));
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn digits() -> anyhow::Result<Vec<Digit>> {
    DIGITS
        .lines()
        .skip(1)
        .map(|line| {
            let mut values = line.split(',').map(|v| v.trim().parse::<f32>()).collect::<Result<Vec<_>, _>>()?;
            let label = values.pop().context("an empty row in the digits")? as usize;
            ensure!(values.len() == PIXELS, "a row of the digits has {} pixels", values.len());
            Ok(Digit { pixels: values, label })
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_digit_goes_to_exactly_one_place_and_the_held_out_part_is_stratified() {
        let split = split(3, 1).unwrap();
        assert_eq!(split.held_out.len(), 360);
        for class in 0..CLASSES {
            assert_eq!(split.held_out.iter().filter(|d| d.label == class).count(), 36, "class {class}");
        }
        let total: usize = split.nodes.iter().map(Vec::len).sum();
        assert_eq!(total + 360, 1797);
        assert!(split.nodes.iter().all(|n| n.len() >= LEAST_SAMPLES));
    }

    #[test]
    fn the_seed_decides_the_split() {
        assert_eq!(split(3, 5).unwrap().nodes, split(3, 5).unwrap().nodes);
        assert_ne!(split(3, 5).unwrap().nodes, split(3, 6).unwrap().nodes);
    }

    #[test]
    fn too_many_nodes_are_refused() {
        assert!(split(100, 1).unwrap_err().to_string().contains("too many"));
    }
}
