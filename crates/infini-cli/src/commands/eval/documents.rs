//! The documents that are scored: files, folders of them, token shards.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use infini::corpus::sources;
use infini::eval::perplexity::Document;
use infini::text::Tokenizer;
use infini_format::hash::sha256;
use infini_format::shards::{Corpus, MANIFEST};

use crate::console::note;

/// The flags that name documents.
#[derive(Args, Debug)]
pub struct Data {
    /// Files and folders of documents, or folders of token shards
    #[arg(long, required = true, num_args = 1.., value_name = "FILE|DIR|SHARDS")]
    pub data: Vec<PathBuf>,
    /// Join hard-wrapped lines of files, as the model's training texts were (shards know it themselves)
    #[arg(long)]
    pub unwrap: bool,
    /// Only so many tokens of each document
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..))]
    pub max_tokens: Option<u64>,
}

impl Data {
    /// Reads them.
    pub fn read(&self, tokenizer: &Tokenizer) -> Result<Vec<Document>> {
        let most = self.max_tokens.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let mut all = Vec::new();
        for path in &self.data {
            if !path.join(MANIFEST).is_file() {
                self.texts(path, tokenizer, most, &mut all)?;
                continue;
            }
            let corpus = Corpus::open(path)?;
            if corpus.about().tokenizer != sha256(&tokenizer.to_json()) {
                bail!("other tokenizer: {}: the shards were made with another than the model's", path.display());
            }
            for d in corpus.documents() {
                let mut tokens = Vec::new();
                let end = d.tokens.end.min(d.tokens.start.saturating_add(most as u64));
                corpus.read(d.tokens.start..end, &mut tokens)?;
                all.push(Document { name: d.name.clone(), tokens });
            }
        }
        if all.is_empty() {
            bail!("no document with text: name files that hold some with --data");
        }
        Ok(all)
    }

    /// All tokens of one text, or of the texts of a folder one after the other.
    pub fn whole(&self, path: &Path, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let mut all = Vec::new();
        self.texts(path, tokenizer, usize::MAX, &mut all)?;
        Ok(all.into_iter().flat_map(|d| d.tokens).collect())
    }

    fn texts(&self, path: &Path, tokenizer: &Tokenizer, most: usize, all: &mut Vec<Document>) -> Result<()> {
        let inputs = sources(&[path.to_path_buf()])?;
        let only = inputs.len() == 1;
        for source in inputs {
            let mut tokens = Vec::new();
            let read = source.encode(tokenizer, self.unwrap, &mut |ids, _| {
                tokens.extend_from_slice(ids);
                Ok(if tokens.len() >= most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            });
            match read {
                Ok(read) => read.notes.iter().for_each(note),
                Err(e) if only => return Err(e.into()),
                Err(e) => note(format_args!("{}: passed over: {e}", source.name)),
            }
            tokens.truncate(most);
            if !tokens.is_empty() {
                all.push(Document { name: source.name, tokens });
            }
        }
        Ok(())
    }
}
