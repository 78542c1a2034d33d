//! Tests of the splits: every sample exactly once, the shares that are promised, seeds, refusals.

use std::collections::BTreeSet;

use rand::SeedableRng;

use super::*;

/// 1,000 samples of ten classes in unequal numbers: 55, 65, ... 145.
fn labels() -> Vec<u32> {
    (0..10u32).flat_map(|class| std::iter::repeat_n(class, 55 + 10 * class as usize)).collect()
}

fn random(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

fn dealt(split: Split, nodes: usize, seed: u64) -> Vec<Vec<u32>> {
    let labels = labels();
    let rows: Vec<u32> = (0..labels.len() as u32).collect();
    deal(&labels, &rows, nodes, split, &mut random(seed)).unwrap()
}

fn classes_of(part: &[u32]) -> BTreeSet<u32> {
    let labels = labels();
    part.iter().map(|row| labels[*row as usize]).collect()
}

#[test]
fn every_sample_goes_to_exactly_one_node_in_every_split() {
    for split in [Split::Iid, Split::Dirichlet(0.5), Split::Dirichlet(0.001), Split::Classes(2), Split::Classes(10)] {
        for nodes in [5, 10, 37, 3000] {
            let mut all: Vec<u32> = dealt(split, nodes, 1).concat();
            all.sort_unstable();
            assert_eq!(all, (0..1000).collect::<Vec<_>>(), "{split} over {nodes}");
        }
    }
}

#[test]
fn the_seed_decides_and_nothing_else() {
    for split in [Split::Iid, Split::Dirichlet(0.5), Split::Classes(2)] {
        assert_eq!(dealt(split, 10, 7), dealt(split, 10, 7), "{split}");
        assert_ne!(dealt(split, 10, 7), dealt(split, 10, 8), "{split}");
    }
}

#[test]
fn iid_parts_differ_by_one_sample_at_most_and_hold_every_class() {
    let parts = dealt(Split::Iid, 7, 3);
    let sizes: BTreeSet<usize> = parts.iter().map(Vec::len).collect();
    assert!(sizes.iter().all(|size| [142, 143].contains(size)), "{sizes:?}");
    assert!(parts.iter().all(|part| classes_of(part).len() == 10));
}

#[test]
fn a_small_dirichlet_parameter_is_uneven_and_a_large_one_even() {
    // The mean over classes of the largest share that one of ten nodes has; an even split has 0.1.
    let concentration = |alpha: f64| {
        let (labels, parts) = (labels(), dealt(Split::Dirichlet(alpha), 10, 11));
        let share = |class: u32| {
            let has = |part: &Vec<u32>| part.iter().filter(|row| labels[**row as usize] == class).count();
            let total: usize = parts.iter().map(has).sum();
            parts.iter().map(has).max().unwrap() as f64 / total as f64
        };
        (0..10).map(share).sum::<f64>() / 10.0
    };
    assert!(concentration(0.05) > 0.6, "{}", concentration(0.05));
    assert!((0.2..0.6).contains(&concentration(0.5)), "{}", concentration(0.5));
    assert!(concentration(1000.0) < 0.13, "{}", concentration(1000.0));
}

#[test]
fn dirichlet_shares_have_the_distributions_mean_and_variance() {
    // A share of Dirichlet(α, ..., α) over n has mean 1/n and variance (n-1)/(n²(nα+1)).
    let (nodes, alpha, size) = (5usize, 0.5, 1000usize);
    let labels: Vec<u32> = vec![0; size];
    let rows: Vec<u32> = (0..size as u32).collect();
    let mut shares = Vec::new();
    for seed in 0..400 {
        let gamma = Gamma::new(alpha, 1.0).unwrap();
        let parts = dirichlet_once(std::slice::from_ref(&rows), nodes, &gamma, &mut random(seed));
        shares.extend(parts.iter().map(|part| part.len() as f64 / labels.len() as f64));
    }
    let mean = shares.iter().sum::<f64>() / shares.len() as f64;
    let variance = shares.iter().map(|share| (share - mean).powi(2)).sum::<f64>() / shares.len() as f64;
    let n = nodes as f64;
    let expected = (n - 1.0) / (n * n * (n * alpha + 1.0));
    assert!((mean - 1.0 / n).abs() < 1e-9, "{mean}");
    assert!((variance / expected - 1.0).abs() < 0.1, "{variance} {expected}");
}

#[test]
fn a_dirichlet_split_tries_for_ten_samples_a_node() {
    assert!(dealt(Split::Dirichlet(0.5), 10, 1).iter().all(|part| part.len() >= 10));
}

#[test]
fn each_node_has_its_number_of_classes_and_each_class_its_even_share_of_nodes() {
    for (nodes, wanted) in [(10, 2), (5, 2), (37, 3), (4, 10)] {
        let parts = dealt(Split::Classes(wanted), nodes, 5);
        assert!(parts.iter().all(|part| classes_of(part).len() == wanted), "{nodes} × {wanted}");
        let owners: Vec<usize> =
            (0..10).map(|class| parts.iter().filter(|part| classes_of(part).contains(&class)).count()).collect();
        let (least, most) = (owners.iter().min().unwrap(), owners.iter().max().unwrap());
        assert!(most - least <= 1, "{owners:?}");
    }
}

#[test]
fn splits_that_cannot_be_are_refused_with_what_to_do() {
    let labels = labels();
    let rows: Vec<u32> = (0..1000).collect();
    let refused = |nodes, split| deal(&labels, &rows, nodes, split, &mut random(1)).unwrap_err().to_string();
    assert!(refused(3, Split::Classes(11)).contains("the 10 that the data has"));
    assert!(refused(3, Split::Classes(2)).contains("at least 5 nodes"));
    for text in ["", "iidd", "dirichlet", "dirichlet:x", "classes:0", "classes:-1", "classes:1.5", "iid:3"] {
        assert!(matches!(text.parse::<Split>(), Err(SplitError::Unknown(_))), "{text}");
    }
    for text in ["dirichlet:0", "dirichlet:-1", "dirichlet:nan", "dirichlet:inf"] {
        assert!(matches!(text.parse::<Split>(), Err(SplitError::Alpha(_))), "{text}");
    }
    for split in ["iid", "dirichlet:0.5", "classes:2"] {
        assert_eq!(split.parse::<Split>().unwrap().to_string(), split);
    }
}

#[test]
fn the_test_part_is_a_share_of_each_class_or_the_end_of_the_file() {
    let labels = labels();
    let (train, test) = take_test(&labels, TestPart::Share(0.2), &mut random(1)).unwrap();
    assert_eq!((train.len(), test.len()), (800, 200));
    for class in 0..10u32 {
        let share = test.iter().filter(|row| labels[**row as usize] == class).count();
        assert!((share as f64 - f64::from(55 + 10 * class) * 0.2).abs() <= 1.0, "class {class}: {share}");
    }
    let mut all = [train, test].concat();
    all.sort_unstable();
    assert_eq!(all, (0..1000).collect::<Vec<_>>());
    let (train, test) = take_test(&labels, TestPart::Last(3), &mut random(1)).unwrap();
    assert_eq!((train.len(), test), (997, vec![997, 998, 999]));
    assert!(take_test(&labels, TestPart::None, &mut random(1)).unwrap().1.is_empty());
    assert!(take_test(&labels, TestPart::Last(1000), &mut random(1)).is_err());
}
