//! A conversation with an instruct model: turns in, turns out, each token read once.
//!
//! What the state has read is known as text, special tokens and all. The next turn is rendered with the
//! whole history; where the text goes on from what was read, only the rest is read. Old turns are read
//! again in two cases: a template that changes what it wrote before, and full attention that has run out
//! of [room](crate::model::Model::room) (then without the oldest).

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::folder::Loaded;
use crate::generate::{Finish, Sampler, sample};
use crate::model::Want;
use crate::state::State;
use crate::text::chat::{ChatTemplate, Message, encode_guarded, guarded};

/// What of a conversation is kept beside its state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// The turns.
    pub messages: Vec<Message>,
    /// The token with which the model ended its last turn, as text; empty if it did not.
    pub end: String,
}

/// A conversation.
#[derive(Debug)]
pub struct Conversation<'a> {
    loaded: &'a Loaded,
    template: ChatTemplate,
    /// What was there before the conversation began.
    before: State,
    state: State,
    history: History,
    /// What the state has read of the conversation.
    read: String,
}

/// What a turn took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Tokens read before the answer.
    pub read: usize,
    /// Of these, tokens that had been read before.
    pub again: usize,
    /// Tokens of the answer.
    pub written: usize,
    /// Turns that were forgotten because full attention ran out of room.
    pub forgotten: usize,
    /// Why the answer ended.
    pub finish: Finish,
}

impl<'a> Conversation<'a> {
    /// A conversation that begins after everything in `before`.
    ///
    /// # Errors
    /// A model without a chat template, or one that is no Jinja.
    pub fn new(loaded: &'a Loaded, before: State) -> Result<Self> {
        Conversation::resume(loaded, before, History::default())
    }

    /// A conversation that goes on where `history` ended; all of it has been read into `state`.
    ///
    /// # Errors
    /// As [`Conversation::new`], and a history that the template refuses.
    pub fn resume(loaded: &'a Loaded, state: State, history: History) -> Result<Self> {
        let Some(source) = &loaded.template else {
            return Err(Error::Template("this model has none: take an instruct model".into()));
        };
        let template = ChatTemplate::new(source)?;
        let mut conversation =
            Conversation { loaded, template, before: state.fork(), state, history, read: String::new() };
        if let Some((last, before)) = conversation.history.messages.split_last() {
            conversation.read = conversation.render(before, true)? + &conversation.said(last);
        }
        Ok(conversation)
    }

    /// What was said.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The state after the last turn.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// With `on`, reads of the memory give exactly zero.
    pub fn set_knock_out(&mut self, on: bool) {
        self.before.set_knock_out(on);
        self.state.set_knock_out(on);
    }

    /// A message before the first turn.
    ///
    /// # Errors
    /// A conversation that has begun.
    pub fn system(&mut self, text: &str) -> Result<()> {
        if !self.history.messages.is_empty() {
            return Err(Error::Input("the system's message comes first: begin a new conversation".into()));
        }
        self.history.messages.push(Message::new("system", text));
        Ok(())
    }

    /// Says `text` and lets the model answer, in at most `max_tokens` tokens; `emit` gets the answer as it
    /// comes. After an error nothing was said.
    ///
    /// # Errors
    /// What the template refuses, and a message that full attention has no room for.
    pub fn say(
        &mut self,
        text: &str,
        sampler: &mut Sampler,
        max_tokens: usize,
        emit: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Turn> {
        let mut messages = self.history.messages.clone();
        messages.push(Message::new("user", text));
        let mut whole = self.render(&messages, true)?;
        let tokens = |text: &str| encode_guarded(&self.loaded.tokenizer, text);
        let room = |state: &State| self.loaded.model.room(state).map_or(usize::MAX, |n| n as usize);
        // a short answer has to fit as well
        let reserve = max_tokens.min(64);
        let mut turn = Turn { read: 0, again: 0, written: 0, forgotten: 0, finish: Finish::End };
        let rest = whole.strip_prefix(&self.read).map(tokens);
        let ids = match rest.filter(|ids| ids.len() + reserve <= room(&self.state)) {
            Some(ids) => ids,
            None => {
                let (mut ids, limit) = (tokens(&whole), room(&self.before));
                let first = usize::from(messages[0].role == "system");
                if ids.len() + reserve > limit {
                    // without the oldest turns, until half of the room is free
                    while ids.len() > limit / 2 && messages.len() >= first + 3 {
                        messages.drain(first..first + 2);
                        turn.forgotten += 2;
                        whole = self.render(&messages, true)?;
                        ids = tokens(&whole);
                    }
                }
                if ids.len() + reserve > limit {
                    return Err(Error::Input(format!(
                        "the message has {} tokens, full attention has room for {limit}: say less, or give an adapter",
                        ids.len()
                    )));
                }
                turn.again = ids.len().min((self.state.position() - self.before.position()) as usize);
                self.state = self.before.fork();
                ids
            }
        };
        turn.read = ids.len();
        sampler.saw(&ids);
        self.loaded.model.forward(&mut self.state, &ids, Want::Last);
        let mut answer = String::new();
        let mut keep = |text: &str| {
            answer.push_str(text);
            emit(text)
        };
        let (written, finish) = sample(self.loaded, &mut self.state, sampler, max_tokens, &self.loaded.stop, &mut keep);
        (turn.written, turn.finish) = (written.len(), finish);
        messages.push(Message::new("assistant", answer));
        let end = written.last().filter(|_| finish == Finish::End).map(|id| self.loaded.tokenizer.decode(&[*id]));
        self.history = History { messages, end: end.unwrap_or_default() };
        self.read = whole + &self.said(self.history.messages.last().expect("just said"));
        Ok(turn)
    }

    fn render(&self, messages: &[Message], answer: bool) -> Result<String> {
        let messages: Vec<Message> = messages.iter().map(|m| guarded(&self.loaded.tokenizer, m)).collect();
        self.template.render(&messages, answer)
    }

    /// What the state has read of the last answer.
    fn said(&self, answer: &Message) -> String {
        guarded(&self.loaded.tokenizer, answer).content + &self.history.end
    }
}
