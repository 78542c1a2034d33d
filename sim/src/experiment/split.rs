//! Who gets which sample: a test part, and the rest over the nodes as the literature splits data sets.
//! Indices alone; what the samples are is `population`'s matter.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Gamma};

/// Draws of a Dirichlet split before the best of them is taken.
const DRAWS: usize = 100;
/// Fewest samples of a node that a Dirichlet split tries for, as NIID-Bench does.
const LEAST: usize = 10;

/// How samples are dealt to nodes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Split {
    /// Shuffled, in parts that differ by one sample at most.
    Iid,
    /// The share of each class that a node has is drawn from Dirichlet(α), α > 0: the smaller, the more uneven (Yurochkin
    /// et al. 2019; Li et al., NIID-Bench, ICDE 2022, §IV). Drawn again, up to 100 times, while a node has fewer than 10
    /// samples or, of small data, a tenth of its even share; then the draw with the largest smallest part is taken.
    Dirichlet(f64),
    /// Each node has samples of K classes, each class in even parts over its nodes (McMahan et al. 2017, §3; NIID-Bench's
    /// "#C = K").
    Classes(usize),
}

/// Why data can't be split so.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SplitError {
    /// The flag's text.
    #[error("{0:?} is no split: give iid, dirichlet:ALPHA with ALPHA above 0, or classes:K with K at least 1")]
    Unknown(String),
    /// More classes a node than there are.
    #[error("classes:{wanted} asks for more classes a node than the {classes} that the data has")]
    TooManyClasses {
        /// Classes a node.
        wanted: usize,
        /// Classes of the data.
        classes: usize,
    },
    /// Some class would have no node.
    #[error(
        "{nodes} nodes with {wanted} classes each leave some of the {classes} classes without a node; give at least \
         {least} nodes, or more classes each"
    )]
    UnownedClasses {
        /// Nodes.
        nodes: usize,
        /// Classes a node.
        wanted: usize,
        /// Classes of the data.
        classes: usize,
        /// Nodes that it takes.
        least: usize,
    },
    /// Nothing is left to train on.
    #[error("of {samples} samples {test} are the test part, so that none is left to train on; make it smaller")]
    NothingLeft {
        /// Samples in all.
        samples: usize,
        /// Samples of the test part.
        test: usize,
    },
    /// The distribution refuses its parameter.
    #[error("dirichlet:{0}: ALPHA must be a number from 0.0001 to 1000000")]
    Alpha(f64),
}

impl FromStr for Split {
    type Err = SplitError;

    fn from_str(text: &str) -> Result<Split, SplitError> {
        let unknown = || SplitError::Unknown(text.to_owned());
        match text.split_once(':') {
            None if text == "iid" => Ok(Split::Iid),
            Some(("dirichlet", alpha)) => {
                let alpha: f64 = alpha.parse().map_err(|_| unknown())?;
                if (1e-4..=1e6).contains(&alpha) { Ok(Split::Dirichlet(alpha)) } else { Err(SplitError::Alpha(alpha)) }
            }
            Some(("classes", count)) => {
                let count = count.parse().map_err(|_| unknown())?;
                if count == 0 { Err(unknown()) } else { Ok(Split::Classes(count)) }
            }
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Split::Iid => f.write_str("iid"),
            Split::Dirichlet(alpha) => write!(f, "dirichlet:{alpha}"),
            Split::Classes(count) => write!(f, "classes:{count}"),
        }
    }
}

/// The part of one file that is the test set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TestPart {
    /// None of it.
    None,
    /// A share, `0.0..1.0`, of each class.
    Share(f64),
    /// The last samples of the file.
    Last(usize),
}

/// Divides `0..labels.len()` into training rows and test rows, both ascending.
///
/// # Errors
/// [`SplitError::NothingLeft`].
pub(super) fn take_test(
    labels: &[u32],
    part: TestPart,
    random: &mut ChaCha8Rng,
) -> Result<(Vec<u32>, Vec<u32>), SplitError> {
    let samples = labels.len();
    let mut is_test = vec![false; samples];
    match part {
        TestPart::None => {}
        TestPart::Last(count) => is_test.iter_mut().rev().take(count).for_each(|test| *test = true),
        TestPart::Share(share) => {
            let mut taken = 0.0;
            for mut rows in by_class(labels, 0..samples as u32) {
                rows.shuffle(random);
                // Cumulative rounding, so that the whole is the share of the whole.
                let upto = taken + rows.len() as f64 * share;
                let count = (upto.round() - f64::round(taken)) as usize;
                taken = upto;
                for row in rows.into_iter().take(count) {
                    if let Some(test) = is_test.get_mut(row as usize) {
                        *test = true;
                    }
                }
            }
        }
    }
    let (test, train): (Vec<u32>, Vec<u32>) =
        (0..samples as u32).partition(|&row| is_test.get(row as usize) == Some(&true));
    if train.is_empty() {
        return Err(SplitError::NothingLeft { samples, test: test.len() });
    }
    Ok((train, test))
}

/// Deals `rows` to `nodes` nodes; every row goes to exactly one of them. `labels` are those of all samples. Each part
/// ascends; it may be empty where there are more nodes than samples.
///
/// # Errors
/// [`SplitError`].
pub(super) fn deal(
    labels: &[u32],
    rows: &[u32],
    nodes: usize,
    split: Split,
    random: &mut ChaCha8Rng,
) -> Result<Vec<Vec<u32>>, SplitError> {
    let mut parts = match split {
        Split::Iid => iid(rows, nodes, random),
        Split::Dirichlet(alpha) => dirichlet(by_class(labels, rows.iter().copied()), nodes, alpha, random)?,
        Split::Classes(count) => by_classes(by_class(labels, rows.iter().copied()), nodes, count, random)?,
    };
    parts.iter_mut().for_each(|part| part.sort_unstable());
    Ok(parts)
}

/// The rows of each class that has any, by class.
fn by_class(labels: &[u32], rows: impl Iterator<Item = u32>) -> Vec<Vec<u32>> {
    let mut classes: std::collections::BTreeMap<u32, Vec<u32>> = std::collections::BTreeMap::new();
    for row in rows {
        if let Some(label) = labels.get(row as usize) {
            classes.entry(*label).or_default().push(row);
        }
    }
    classes.into_values().collect()
}

fn iid(rows: &[u32], nodes: usize, random: &mut ChaCha8Rng) -> Vec<Vec<u32>> {
    let mut rows = rows.to_vec();
    rows.shuffle(random);
    even_parts(&rows, nodes).map(<[u32]>::to_vec).collect()
}

/// Consecutive parts that differ by one at most.
fn even_parts<T>(items: &[T], parts: usize) -> impl Iterator<Item = &[T]> {
    let upto = move |part: usize| items.len() * part / parts.max(1);
    (0..parts).map(move |part| items.get(upto(part)..upto(part + 1)).unwrap_or_default())
}

fn dirichlet(
    mut classes: Vec<Vec<u32>>,
    nodes: usize,
    alpha: f64,
    random: &mut ChaCha8Rng,
) -> Result<Vec<Vec<u32>>, SplitError> {
    let gamma = Gamma::new(alpha, 1.0).map_err(|_| SplitError::Alpha(alpha))?;
    let samples: usize = classes.iter().map(Vec::len).sum();
    let wanted = LEAST.min(samples / nodes.max(1) / 10);
    classes.iter_mut().for_each(|rows| rows.shuffle(random));
    let mut best: Option<(usize, Vec<Vec<u32>>)> = None;
    for _ in 0..DRAWS {
        let parts = dirichlet_once(&classes, nodes, &gamma, random);
        let least = parts.iter().map(Vec::len).min().unwrap_or(0);
        if best.as_ref().is_none_or(|(most, _)| least > *most) {
            best = Some((least, parts));
        }
        if least >= wanted {
            break;
        }
    }
    best.map(|(_, parts)| parts).ok_or(SplitError::Alpha(alpha))
}

fn dirichlet_once(classes: &[Vec<u32>], nodes: usize, gamma: &Gamma<f64>, random: &mut ChaCha8Rng) -> Vec<Vec<u32>> {
    let mut parts = vec![Vec::new(); nodes];
    for rows in classes {
        // A normalised vector of Gamma(α, 1) draws is a draw of Dirichlet(α). With a small α all may underflow to 0.
        let mut draws: Vec<f64> = (0..nodes).map(|_| gamma.sample(random)).collect();
        let mut sum: f64 = draws.iter().sum();
        if sum <= 0.0 {
            draws.fill(1.0);
            sum = nodes as f64;
        }
        let (mut cumulative, mut start) = (0.0, 0);
        for (node, (part, draw)) in parts.iter_mut().zip(&draws).enumerate() {
            cumulative += draw / sum;
            let end = match node + 1 == nodes {
                true => rows.len(),
                false => ((rows.len() as f64 * cumulative).round() as usize).clamp(start, rows.len()),
            };
            part.extend_from_slice(rows.get(start..end).unwrap_or_default());
            start = end;
        }
    }
    parts
}

fn by_classes(
    mut classes: Vec<Vec<u32>>,
    nodes: usize,
    wanted: usize,
    random: &mut ChaCha8Rng,
) -> Result<Vec<Vec<u32>>, SplitError> {
    let count = classes.len();
    if wanted > count {
        return Err(SplitError::TooManyClasses { wanted, classes: count });
    }
    if nodes.saturating_mul(wanted) < count {
        return Err(SplitError::UnownedClasses { nodes, wanted, classes: count, least: count.div_ceil(wanted) });
    }
    let mut owners: Vec<Vec<usize>> = vec![Vec::new(); count];
    let mut deck = VecDeque::new();
    for node in 0..nodes {
        for class in hand(&mut deck, count, wanted, random) {
            if let Some(owners) = owners.get_mut(class) {
                owners.push(node);
            }
        }
    }
    let mut parts = vec![Vec::new(); nodes];
    for (rows, owners) in classes.iter_mut().zip(&owners) {
        rows.shuffle(random);
        for (part, owner) in even_parts(rows, owners.len()).zip(owners) {
            if let Some(all) = parts.get_mut(*owner) {
                all.extend_from_slice(part);
            }
        }
    }
    Ok(parts)
}

/// One node's classes, `wanted` different ones, from a deck that holds every class once a pass: so all classes have
/// equally many nodes, give or take one, and none is left out.
fn hand(deck: &mut VecDeque<usize>, classes: usize, wanted: usize, random: &mut ChaCha8Rng) -> Vec<usize> {
    let mut hand = Vec::with_capacity(wanted);
    while hand.len() < wanted {
        match deck.iter().position(|class| !hand.contains(class)) {
            Some(at) => hand.extend(deck.remove(at)),
            None => {
                let mut pass: Vec<usize> = (0..classes).collect();
                pass.shuffle(random);
                deck.extend(pass);
            }
        }
    }
    hand
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "split_tests.rs"]
mod tests;
