//! The service under load: versions swapped in while requests run, and more requests than fit.
//! What single requests get is in `service_tests`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::super::super::{PrepareOptions, prepare};
use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swaps_under_load_fail_no_request_and_every_answer_is_of_the_version_it_names() {
    const VERSIONS: u64 = 6;
    let digits = digits();
    let calibration: Vec<Vec<f32>> = digits[..64].iter().map(|sample| sample.input.clone()).collect();
    let prepared = |number| prepare(package(number), calibration.clone(), &[], &PrepareOptions::default()).unwrap();
    let input = digits[99].input.clone();
    let expected: BTreeMap<String, Vec<f32>> =
        (1..=VERSIONS).map(|number| (number.to_string(), prepared(number).run(&input).unwrap().values)).collect();
    let node = start(ServiceOptions::default()).await;
    node.repository.swap(prepared(1));

    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (stop, answered, expected) = (Arc::clone(&stop), Arc::clone(&answered), expected.clone());
            let (mut client, request) = (Client::new(node.channel.clone()), request(1, &input));
            tokio::spawn(async move {
                let mut seen = Vec::new();
                let mut last = false;
                while !last {
                    // A request sent after the stop was seen was sent after the last swap.
                    last = stop.load(Ordering::Acquire);
                    let response = client.model_infer(request.clone()).await.unwrap().into_inner();
                    assert_eq!(values(&response), expected[&response.model_version]);
                    answered.fetch_add(1, Ordering::Relaxed);
                    let version: u64 = response.model_version.parse().unwrap();
                    assert!(seen.last().is_none_or(|last| *last <= version), "versions never go back");
                    seen.push(version);
                }
                *seen.last().unwrap()
            })
        })
        .collect();
    for number in 2..=VERSIONS {
        let before = answered.load(Ordering::Relaxed);
        let next = tokio::task::spawn_blocking({
            let (package, calibration) = (package(number), calibration.clone());
            move || prepare(package, calibration, &[], &PrepareOptions::default()).unwrap()
        });
        let previous = node.repository.swap(next.await.unwrap()).unwrap();
        assert_eq!(previous.manifest().number, number - 1);
        while answered.load(Ordering::Relaxed) < before + 20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    stop.store(true, Ordering::Release);
    for caller in callers {
        assert_eq!(caller.await.unwrap(), VERSIONS);
    }
    assert_eq!(node.repository.versions_served("digits"), VERSIONS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_answers_resource_exhausted_at_once_and_recovers() {
    let executor = ExecutorOptions { threads: 1, max_waiting: 2, ..ExecutorOptions::default() };
    let node = start_with(ServiceOptions::default(), executor).await;
    node.repository.swap(serving(3));
    let large = request(4096, &vec![1.0; 4096 * PIXELS]);
    let calls: Vec<_> = (0..24)
        .map(|_| {
            let (mut client, large) = (Client::new(node.channel.clone()), large.clone());
            tokio::spawn(async move {
                let started = Instant::now();
                (client.model_infer(large).await.map(|_| ()).map_err(|status| status.code()), started.elapsed())
            })
        })
        .collect();
    let mut results = Vec::new();
    for call in calls {
        results.push(call.await.unwrap());
    }
    let answered: Vec<Duration> = results.iter().filter(|(result, _)| result.is_ok()).map(|(_, time)| *time).collect();
    let refused: Vec<Duration> =
        results.iter().filter(|(result, _)| *result == Err(Code::ResourceExhausted)).map(|(_, time)| *time).collect();
    assert_eq!(answered.len() + refused.len(), 24, "{results:?}");
    assert!(answered.len() >= 3 && !refused.is_empty(), "{results:?}");
    assert!(refused.iter().min() < answered.iter().max(), "a refusal does not wait for its turn: {results:?}");
    Client::new(node.channel.clone()).model_infer(one()).await.unwrap();
}
