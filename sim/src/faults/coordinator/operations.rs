//! What operators want of the coordinator: create, pause, resume, cancel; asked again until it was done.
//! What comes of it is decided in `step`.

use std::sync::Arc;

use fedge_coordinator::rounds::state::{Phase, TaskState, VersionRef};
use fedge_coordinator::rounds::step::Event;
use fedge_coordinator::rounds::task::TaskSpec;

use super::Coordinator;
use super::running::{Running, phase_index};
use crate::faults::database::TaskRow;
use crate::faults::effect::Effect;
use crate::faults::env::{Crash, Env, Trouble};
use crate::faults::message::COORDINATOR;
use crate::faults::scenario::Act;

impl Coordinator {
    /// An operator asks for something; asked again later where it can't be done yet.
    ///
    /// # Errors
    /// The process dies.
    pub fn act(&mut self, env: &mut Env, act: Act, task: u8) -> Result<(), Crash> {
        let done = match act {
            Act::Create => self.create(env, task),
            Act::Pause => self.ask(env, act, task, &Event::Paused(true)),
            Act::Resume => self.ask(env, act, task, &Event::Paused(false)),
            Act::Cancel => self.ask(env, act, task, &Event::Cancelled),
        };
        match done {
            Err(Trouble::Crash) => Err(Crash),
            Ok(true) => Ok(()),
            Ok(false) | Err(Trouble::Disk) => {
                env.act_again(act, task);
                Ok(())
            }
        }
    }

    /// False: it can't be done yet.
    fn ask(&mut self, env: &mut Env, act: Act, task: u8, event: &Event) -> Result<bool, Trouble> {
        let Some(row) = self.database.tasks.values().find(|row| row.index == task) else { return Ok(false) };
        if matches!(row.state.phase, Phase::Ended { .. }) {
            return Ok(true);
        }
        env.note(format_args!("operator: {act:?} {}", row.state.task_id));
        env.coverage.act(act, phase_index(&row.state));
        let id = row.state.task_id.clone();
        self.event(env, &id, event, None)?;
        Ok(true)
    }

    fn create(&mut self, env: &mut Env, task: u8) -> Result<bool, Trouble> {
        if self.database.tasks.values().any(|row| row.index == task) {
            return Ok(true);
        }
        let Some((_, text)) = self.setup.tasks.get(usize::from(task)).cloned() else { return Ok(true) };
        let Ok(spec) = TaskSpec::parse(&text) else { return Ok(true) };
        let process = self.process.as_ref();
        // One running task a lineage.
        if process.is_none_or(|process| process.tasks.values().any(|running| running.spec.model == spec.model)) {
            return Ok(false);
        }
        let Some(newest) = self.database.newest(&spec.model).map(|row| row.manifest.clone()) else { return Ok(true) };
        let Some(base) = self.base(&spec.model, newest.number, &newest.digest) else { return Ok(false) };
        let id = format!("{}-{}", spec.model, self.database.tasks.len() + 1);
        let state = TaskState::new(id.clone(), VersionRef { number: newest.number, digest: newest.digest });
        let struck = env.begin(COORDINATOR, Effect::RecordTask)?;
        if !struck.in_the_middle() {
            let row = TaskRow { text, index: task, state: state.clone(), created_ms: env.wall_ms(COORDINATOR) };
            self.database.tasks.insert(id.clone(), row);
        }
        env.end(COORDINATOR, struck)?;
        env.note(format_args!("operator: creates {id}"));
        env.coverage.act(Act::Create, 0);
        let running = Running { spec: Arc::new(spec), index: task, state, base, sum: None, making: None };
        if let Some(process) = &mut self.process {
            process.tasks.insert(id, running);
        }
        self.put_up_board(env)?;
        Ok(true)
    }
}
