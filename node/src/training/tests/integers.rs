//! Models whose input is integers: token ids, trained as exporters write them.

use std::sync::atomic::AtomicBool;

use fedge_models::Model;

use super::build::{Attribute, Builder};
use super::parity::{by_tract, forward};
use super::runs::plan;
use crate::training::{Dataset, Loss, Plan, evaluate, gradients, train};

const TOKENS: usize = 5;
const WORDS: u32 = 12;

/// Two classes from the mean of the embeddings of five token ids.
fn bag() -> Model {
    Builder::new(17, &[TOKENS as i64])
        .of_integers()
        .parameter("table", &[i64::from(WORDS), 4])
        .node("Gather", "table x", "words")
        .node_with("ReduceMean", "words", "mean", &[("axes", Attribute::Ints(&[1])), ("keepdims", Attribute::Int(0))])
        .parameter("w", &[4, 2])
        .node("MatMul", "mean w", "logits")
        .model("logits")
}

/// Sentences whose class says whether word 0 is in them.
fn sentences(count: u32) -> Dataset {
    let word = |sentence: u32, place: u32| (sentence.wrapping_mul(2_654_435_761) >> (5 * place)) % WORDS;
    let (mut inputs, mut labels) = (Vec::new(), Vec::new());
    for sentence in 0..count {
        let words: Vec<u32> = (0..TOKENS as u32).map(|place| word(sentence, place)).collect();
        labels.push(u32::from(words.contains(&0)));
        inputs.extend(words.into_iter().map(|word| word as f32));
    }
    Dataset::new(inputs, labels, vec![TOKENS]).unwrap()
}

#[test]
fn a_model_of_token_ids_learns_and_answers_as_tract_does() {
    let (model, data, test) = (bag(), sentences(600), sentences(900));
    assert_eq!(model.untrainable(), []);
    let plan = Plan { epochs: 30, ..plan() };
    let outcome = train(&model, &data, &plan, &|_| (), &AtomicBool::new(false)).unwrap();
    let trained = model.with_weights(&outcome.weights).unwrap();
    let accuracy = evaluate(&trained, &test).unwrap().accuracy();
    assert!(accuracy > 0.95, "{accuracy}");
    let inputs = [0.0, 3.0, 11.0, 7.0, 7.0];
    let (found, expected) = (forward(&trained, &inputs, 1), by_tract(&trained, &inputs, 1));
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?} {expected:?}");
    // A word that no sentence has gets no gradient.
    let one = Dataset::new(inputs.to_vec(), vec![1], vec![TOKENS]).unwrap();
    let (_, gradients) = gradients(&trained, &one, Loss::CrossEntropy).unwrap();
    let rows: Vec<bool> = gradients["table"].chunks(4).map(|row| row.iter().any(|slope| *slope != 0.0)).collect();
    let used: Vec<usize> = (0..rows.len()).filter(|&word| rows[word]).collect();
    assert_eq!(used, [0, 3, 7, 11]);
}

#[test]
fn numbers_that_are_no_ids_are_refused_with_their_sample() {
    let refused = |value: f32| {
        let mut inputs = vec![1.0; 2 * TOKENS];
        inputs[TOKENS + 2] = value;
        let data = Dataset::new(inputs, vec![0, 1], vec![TOKENS]).unwrap();
        evaluate(&bag(), &data).unwrap_err().to_string()
    };
    for value in [0.5, 2e9] {
        let error = refused(value);
        assert!(error.contains("sample 2, number 3") && error.contains("INT64"), "{error}");
    }
    let error = refused(WORDS as f32);
    assert!(error.contains("node_words"), "{error}");
}
