//! Runs statements.

use std::{fmt, net::IpAddr, ops::Range};

use super::{
    signature::{self, Fault},
    state::Shell,
    world::World,
};
use crate::{
    error::Error,
    expr::{
        PacketSet, access,
        evaluate::{self, Called, Environment},
        fault::{self, Reason},
        hint,
        object::Object,
        scan,
        syntax::{self, Node, Statement, Suffix, SuffixKind, Tree},
    },
    layer::{Kind, Layer as _, nearest},
    packet::Excerpt,
};

/// The variable that holds the last value that was shown.
const LAST: &str = "_";

/// Output of a statement.
#[derive(Debug)]
pub enum Output<'a> {
    /// The value of an expression.
    Value(&'a Object),
    /// A note for the user.
    Notice(&'a str),
}

/// Why a statement failed, and where.
#[derive(Debug)]
pub struct Failure {
    /// Line, from 1.
    pub line: usize,
    /// The line of the text, with the place.
    pub excerpt: Box<Excerpt>,
    /// [`Error::Invalid`] for an invalid statement, otherwise the error of its execution.
    pub error: Error,
    reason: Option<String>,
}

impl Failure {
    /// The error without line and column.
    pub fn reason(&self) -> String {
        self.reason.clone().unwrap_or_else(|| self.error.to_string())
    }

    /// Column in characters, from 1.
    pub fn column(&self) -> usize {
        self.excerpt.column()
    }

    /// Whether the statement is invalid; otherwise its execution failed.
    pub fn is_of_text(&self) -> bool {
        self.reason.is_some()
    }

    fn new<E: Into<Error>>(text: &str, fault: fault::Fault<E>) -> Self {
        let excerpt = Box::new(Excerpt::new(text, fault.at));
        let (line, column) = (excerpt.number, excerpt.column());
        match fault.reason {
            Reason::Failed(error) => Self { line, excerpt, error: error.into(), reason: None },
            Reason::Invalid(reason) => {
                let error = Error::invalid(format!("line {line}, column {column}"), &reason);
                Self { line, excerpt, error, reason: Some(reason) }
            }
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column(), self.reason())
    }
}

impl std::error::Error for Failure {}

/// Whether a bracket is open at the end of `text`: the statement continues on the next line.
pub fn is_open(text: &str) -> bool {
    scan::is_open(text)
}

impl<W: World> Shell<W> {
    /// Runs statements, separated by line ends or `;`. All are parsed before the first is run. Calls `output` with
    /// their values and notes. Safe to cancel: the statement that is running then sets no variable.
    ///
    /// # Errors
    /// The first failure; the statements before it have been run.
    pub async fn run(&mut self, text: &str, mut output: impl FnMut(Output<'_>)) -> Result<(), Failure> {
        let ranges = scan::statements(text).map_err(|fault| Failure::new(text, fault))?;
        let read = |range: Range<usize>| Ok((range.start, syntax::statement(text, range)?));
        let statements: Result<Vec<(usize, Statement)>, fault::Fault> = ranges.into_iter().map(read).collect();
        for (start, statement) in statements.map_err(|fault| Failure::new(text, fault))? {
            let value = self.execute(statement).await.map_err(|fault| Fault { at: fault.at + start, ..fault });
            for notice in self.notices.drain(..) {
                output(Output::Notice(&notice));
            }
            match value.map_err(|fault| Failure::new(text, fault))? {
                Object::None => {}
                Object::Report(text) if text.is_empty() => {}
                value => {
                    output(Output::Value(&value));
                    if !matches!(value, Object::Report(_)) {
                        self.variables.insert(LAST.to_owned(), value);
                    }
                }
            }
            if self.leaving {
                break;
            }
        }
        Ok(())
    }

    async fn execute(&mut self, statement: Statement) -> Result<Object, Fault> {
        match statement {
            Statement::Expression(node) => {
                // `exit` means `exit()`.
                if let Tree::Name(name) = &node.tree
                    && !self.variables.contains_key(name)
                    && let Some(function) = signature::named(name)
                    && function.parameters().all(|(_, optional)| optional)
                {
                    let call = Called { at: node.at, name: name.clone(), arguments: Vec::new() };
                    return self.function(function.bind(call)?).await;
                }
                evaluate::value(self, &node).await
            }
            Statement::Assignment(targets, value) => {
                match &targets[..] {
                    [Node { at, tree: Tree::Name(name) }] => {
                        check_name(name).map_err(|reason| Fault::new(*at, reason))?;
                        let value = evaluate::value(self, &value).await?;
                        self.variables.insert(name.clone(), value);
                    }
                    [Node { at, tree: Tree::Chain(first, suffixes) }] => {
                        self.set_field(*at, first, suffixes, &value).await?;
                    }
                    [target] => return Err(no_target(target.at)),
                    targets => self.unpack(targets, &value).await?,
                }
                Ok(Object::None)
            }
            Statement::Deletion(targets) => {
                for target in targets {
                    match &target.tree {
                        Tree::Name(name) => {
                            let removed = self.variables.remove(name);
                            removed.ok_or_else(|| Fault::new(target.at, self.unknown(name)))?;
                        }
                        Tree::Chain(first, suffixes) => {
                            let none = Node { at: target.at, tree: Tree::Name("None".to_owned()) };
                            self.set_field(target.at, first, suffixes, &none).await?;
                        }
                        _ => return Err(no_target(target.at)),
                    }
                }
                Ok(Object::None)
            }
        }
    }

    /// `a, b = value`
    async fn unpack(&mut self, targets: &[Node], value: &Node) -> Result<(), Fault> {
        let mut names = Vec::with_capacity(targets.len());
        for target in targets {
            let Tree::Name(name) = &target.tree else {
                return Err(Fault::new(target.at, "only variables can be assigned from several values"));
            };
            check_name(name).map_err(|reason| Fault::new(target.at, reason))?;
            names.push(name.clone());
        }
        let parts = match evaluate::value(self, value).await? {
            Object::List(items) | Object::Tuple(items) => items.items().to_vec(),
            Object::Pair(pair) => vec![pair.request.clone().into(), pair.reply.clone().into()],
            other => {
                return Err(Fault::new(
                    value.at,
                    format_args!("{} cannot be assigned to several variables", other.is()),
                ));
            }
        };
        if parts.len() != names.len() {
            let reason = format_args!("{} values cannot be assigned to {} variables", parts.len(), names.len());
            return Err(Fault::new(value.at, reason));
        }
        self.variables.extend(names.into_iter().zip(parts));
        Ok(())
    }

    /// `p[LAYER].field = value`
    async fn set_field(&mut self, at: usize, first: &Node, path: &[Suffix], value: &Node) -> Result<(), Fault> {
        let (Tree::Name(name), [path @ .., Suffix { at: dot, kind: SuffixKind::Attribute(field) }]) =
            (&first.tree, path)
        else {
            return Err(no_target(at));
        };
        let variable = self.variables.get(name).cloned();
        let mut object = variable.ok_or_else(|| Fault::new(at, self.unknown(name)))?;
        let is = object.is();
        let Some(packets) = access::packets_mut(&mut object) else {
            return Err(Fault::new(at, format_args!("{name} is {is}: only fields of packets can be set")));
        };
        let mut begin = 0;
        for suffix in path {
            begin += self.step(packets, begin, suffix).await?;
        }
        let part = packets.layers_from(begin);
        let (layer, index) = access::find(part.template(), field).map_err(|reason| Fault::new(*dot, reason))?;
        let layer_of = &part.template().layers()[layer];
        let info = &layer_of.info().fields[index];
        let spans = evaluate::spans(self, value, layer_of, info).await?;
        let fits = packets.assign(begin + layer, index, spans);
        fits.map_err(|reason| Fault::new(value.at, reason))?;
        self.variables.insert(name.clone(), object);
        Ok(())
    }

    /// How many layers a step of a path skips.
    async fn step(&mut self, packets: &PacketSet, begin: usize, suffix: &Suffix) -> Result<usize, Fault> {
        let part = packets.layers_from(begin);
        let failed = |reason| Fault::new(suffix.at, reason);
        match &suffix.kind {
            SuffixKind::Index(index) => {
                let index = evaluate::value(self, index).await?;
                access::layer(part.template(), &index, 1).map_err(failed)
            }
            SuffixKind::Slice(Some(kind), Some(count)) => {
                let kind = evaluate::value(self, kind).await?;
                let count = evaluate::value(self, count).await?.number().unwrap_or(0);
                access::layer(part.template(), &kind, count).map_err(failed)
            }
            SuffixKind::Attribute(name) if name == "payload" => Ok(1),
            _ => Err(failed("set a field as in p.ttl = 5 or p[TCP].flags = \"A\"".to_owned())),
        }
    }
}

impl<W: World> Environment for Shell<W> {
    type Error = Error;

    fn variable(&self, name: &str) -> Option<Object> {
        self.variables.get(name).cloned()
    }

    fn function(&self, name: &str) -> Option<&'static str> {
        signature::named(name).map(|function| function.name)
    }

    fn unknown(&self, name: &str) -> String {
        let layers = Kind::ALL.iter().map(|kind| kind.name());
        let advice = match hint::idiom(name) {
            Some(advice) => format!("; {advice}"),
            None => similar(name, self.names_of_values().chain(layers)).unwrap_or_default(),
        };
        format!("there is no variable, function or layer '{name}'{advice}")
    }

    fn is_similar(&self, name: &str) -> bool {
        similar(name, self.names_of_values()).is_some()
    }

    async fn resolve(&mut self, name: &str) -> Result<Option<Vec<IpAddr>>, String> {
        self.world.resolve(name).await
    }

    async fn call(&mut self, call: Called) -> Result<Object, Fault> {
        match signature::named(&call.name) {
            Some(function) if function.name == "print" => signature::print(call),
            Some(function) => self.function(function.bind(call)?).await,
            None => Err(Fault::new(call.at, self.unknown(&call.name))),
        }
    }
}

impl<W> Shell<W> {
    /// Variables and functions.
    fn names_of_values(&self) -> impl Iterator<Item = &str> {
        let functions = signature::FUNCTIONS.iter().map(|function| function.name);
        self.variables.keys().map(String::as_str).chain(functions)
    }
}

/// `; did you mean ...?` with the names that are similar, if any is.
fn similar<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<String> {
    // Without a similar name, nearest() lists all names.
    Some(nearest(name, known)).filter(|near| near.starts_with("; did"))
}

fn no_target(at: usize) -> Fault {
    Fault::new(at, "only variables and fields can be assigned, as in p.ttl = 5 or p[TCP].flags = \"A\"")
}

fn check_name(name: &str) -> Result<(), String> {
    let is = match name {
        "None" | "True" | "False" => "a value",
        "in" | "del" => "a keyword",
        _ if Kind::named(name).is_ok() => "a layer",
        _ if signature::named(name).is_some() => "a function",
        _ => return Ok(()),
    };
    Err(format!("{name} is {is}: choose another name for the variable"))
}
