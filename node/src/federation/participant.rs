//! Decides what the node does with its assignments: train, evaluate, send, give up. Pure: no I/O, no clock.
//! `driver` persists and acts; what an assignment says is translated in `convert`.

use super::convert::{Assignment, AssignmentId};

/// What the node is doing for the federation.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Phase {
    /// Nothing.
    #[default]
    Idle,
    /// Training or evaluating in the background.
    Working(Assignment),
    /// An update is persisted and on its way; it survives a restart.
    Sending(AssignmentId),
}

/// The node's part in the federation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Participant {
    /// What it is doing.
    pub phase: Phase,
    /// The assignment that was answered last: a poll may repeat it until the coordinator has moved on.
    pub answered: Option<AssignmentId>,
    /// What the coordinator said last. It says things once, also while the node can't listen.
    pub instruction: Option<Assignment>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The coordinator said what there is to do now.
    Instructed(Option<Assignment>),
    /// Training finished; its update is persisted.
    Trained(AssignmentId),
    /// The evaluation was reported.
    Evaluated(AssignmentId),
    /// The work could not be done, and why.
    Failed(AssignmentId, String),
    /// The coordinator counts the update: what training left behind for the next one is valid.
    Counted(AssignmentId),
    /// The update will never count.
    Refused(AssignmentId),
    /// After a restart, an update that was persisted and not answered was found.
    Found(AssignmentId),
}

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Begin this work in the background.
    Start(Assignment),
    /// Give up the work in the background.
    Cancel(AssignmentId),
    /// Send the persisted update until its outcome is known.
    Send(AssignmentId),
    /// Make what the update left behind (residual, control variate) valid, then forget the update.
    Keep(AssignmentId),
    /// Forget the persisted update and what it left behind.
    Discard(AssignmentId),
    /// Tell the coordinator that it can't be done.
    Decline(AssignmentId, String),
}

/// The next state and what to do.
pub fn step(mut state: Participant, event: Event) -> (Participant, Vec<Effect>) {
    let effects = match event {
        Event::Instructed(instruction) => {
            state.instruction = instruction;
            follow(&mut state)
        }
        Event::Trained(id) if is_working_on(&state, id) => {
            state.phase = Phase::Sending(id);
            vec![Effect::Send(id)]
        }
        // The round moved on while this was being persisted.
        Event::Trained(id) => vec![Effect::Discard(id)],
        Event::Evaluated(id) if is_working_on(&state, id) => finish(&mut state, id, vec![]),
        Event::Failed(id, reason) if is_working_on(&state, id) => {
            finish(&mut state, id, vec![Effect::Decline(id, reason)])
        }
        Event::Evaluated(_) | Event::Failed(..) => vec![],
        Event::Counted(id) if state.phase == Phase::Sending(id) => finish(&mut state, id, vec![Effect::Keep(id)]),
        Event::Refused(id) if state.phase == Phase::Sending(id) => finish(&mut state, id, vec![Effect::Discard(id)]),
        Event::Counted(id) => vec![Effect::Keep(id)],
        Event::Refused(id) => vec![Effect::Discard(id)],
        Event::Found(id) => {
            state.phase = Phase::Sending(id);
            vec![Effect::Send(id)]
        }
    };
    (state, effects)
}

/// Does what the coordinator said last, as far as the phase allows.
fn follow(state: &mut Participant) -> Vec<Effect> {
    let new = state.instruction.clone().filter(|a| state.answered != Some(a.id()));
    match (&state.phase, new) {
        (Phase::Idle, None) => vec![],
        (Phase::Idle, Some(assignment)) => start(state, assignment, vec![]),
        (Phase::Working(current), Some(assignment)) if current.id() == assignment.id() => vec![],
        (Phase::Working(current), new) => {
            let cancelled = vec![Effect::Cancel(current.id())];
            state.phase = Phase::Idle;
            match new {
                Some(assignment) => start(state, assignment, cancelled),
                None => cancelled,
            }
        }
        // An update on its way is brought to its end first: the coordinator's answer tells whether it counted.
        (Phase::Sending(_), _) => vec![],
    }
}

fn start(state: &mut Participant, assignment: Assignment, mut effects: Vec<Effect>) -> Vec<Effect> {
    state.phase = Phase::Working(assignment.clone());
    effects.push(Effect::Start(assignment));
    effects
}

fn finish(state: &mut Participant, id: AssignmentId, mut effects: Vec<Effect>) -> Vec<Effect> {
    state.phase = Phase::Idle;
    state.answered = Some(id);
    effects.extend(follow(state));
    effects
}

fn is_working_on(state: &Participant, id: AssignmentId) -> bool {
    matches!(&state.phase, Phase::Working(assignment) if assignment.id() == id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::federation::convert::test_assignments::{evaluate, train};

    fn run(events: Vec<Event>) -> (Participant, Vec<Effect>) {
        let mut state = Participant::default();
        let mut all = Vec::new();
        for event in events {
            let (next, effects) = step(state, event);
            state = next;
            all.extend(effects);
        }
        (state, all)
    }

    #[test]
    fn training_is_persisted_sent_and_answered_once() {
        let id = train(1).id();
        let (state, effects) = run(vec![
            Event::Instructed(Some(train(1))),
            Event::Instructed(Some(train(1))),
            Event::Trained(id),
            Event::Instructed(Some(train(1))),
            Event::Counted(id),
            Event::Instructed(Some(train(1))),
        ]);
        assert_eq!(effects, vec![Effect::Start(train(1)), Effect::Send(id), Effect::Keep(id)]);
        assert_eq!((state.phase, state.answered), (Phase::Idle, Some(id)));
    }

    #[test]
    fn work_whose_round_is_over_is_given_up() {
        let (state, effects) = run(vec![Event::Instructed(Some(train(1))), Event::Instructed(None)]);
        assert_eq!(effects[1..], [Effect::Cancel(train(1).id())]);
        assert_eq!(state.phase, Phase::Idle);
        let (_, effects) = run(vec![Event::Instructed(Some(train(1))), Event::Instructed(Some(train(2)))]);
        assert_eq!(effects[1..], [Effect::Cancel(train(1).id()), Effect::Start(train(2))]);
        let (_, effects) =
            run(vec![Event::Instructed(Some(train(1))), Event::Instructed(None), Event::Trained(train(1).id())]);
        assert_eq!(effects[2..], [Effect::Discard(train(1).id())]);
    }

    #[test]
    fn an_update_found_after_a_restart_is_sent_before_anything_else() {
        let id = train(1).id();
        let (state, effects) = run(vec![Event::Found(id), Event::Instructed(Some(train(2)))]);
        assert_eq!(effects, vec![Effect::Send(id)]);
        assert_eq!(state.phase, Phase::Sending(id));
    }

    #[test]
    fn an_instruction_that_came_while_sending_is_followed_afterwards() {
        let id = train(1).id();
        let (state, effects) = run(vec![
            Event::Instructed(Some(train(1))),
            Event::Trained(id),
            Event::Instructed(Some(evaluate(2))),
            Event::Refused(id),
        ]);
        assert_eq!(effects[2..], [Effect::Discard(id), Effect::Start(evaluate(2))]);
        assert_eq!(state.phase, Phase::Working(evaluate(2)));
    }

    #[test]
    fn failed_work_is_declined_with_its_reason_and_an_evaluation_ends_quietly() {
        let id = evaluate(3).id();
        let (_, effects) = run(vec![
            Event::Instructed(Some(evaluate(3))),
            Event::Failed(id, "no held-out samples".into()),
            Event::Instructed(Some(evaluate(3))),
        ]);
        assert_eq!(effects[1..], [Effect::Decline(id, "no held-out samples".into())]);
        let (state, effects) = run(vec![Event::Instructed(Some(evaluate(3))), Event::Evaluated(id)]);
        assert_eq!(effects.len(), 1);
        assert_eq!(state.answered, Some(id));
    }
}
