//! Decoded instructions.
//!
//! Constants and special registers stand in the register file like any register, so an operand is always a place.

pub use super::kinds::*;

/// A place among a warp's 32-bit or 64-bit registers, or predicates; the instruction says which.
pub type R = u16;

/// No register.
pub const NONE: R = R::MAX;

/// One instruction.
#[derive(Debug, Clone)]
pub struct Ins {
    /// What it does.
    pub op: Op,
    /// The predicate that guards it, or [`NONE`].
    pub guard: R,
    /// The guard is negated.
    pub unless: bool,
    /// Line of the text.
    pub line: u32,
}

/// How large a warp's register file is, and what stands in it from the start.
#[derive(Debug, Clone, Default)]
pub struct File {
    /// 32-bit places; 16-bit and 8-bit registers stand here, their upper bits 0.
    pub words: usize,
    /// 64-bit places.
    pub longs: usize,
    /// Predicates.
    pub preds: usize,
    /// 32-bit constants.
    pub word_constants: Vec<(R, u32)>,
    /// 64-bit constants.
    pub long_constants: Vec<(R, u64)>,
    /// Special registers.
    pub specials: Vec<(R, Special)>,
    /// Predicates that are constants.
    pub pred_constants: Vec<(R, bool)>,
}

/// An address: a register and a displacement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addr {
    /// The register, or [`NONE`].
    pub base: R,
    /// The register is a 64-bit one.
    pub long: bool,
    /// What is added.
    pub offset: i64,
}

/// How much of the source a `cp.async` reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceBytes {
    /// All.
    All,
    /// As many bytes as the register says.
    Word(R),
    /// None where the predicate holds.
    Ignore(R),
}

/// `mma.sync.aligned.m16n8k*.row.col`.
#[derive(Debug, Clone)]
pub struct Mma {
    /// K: 4, 8 or 16.
    pub k: u32,
    /// Type of A and B.
    pub ty: MmaTy,
    /// D is f16.
    pub half_d: bool,
    /// C is f16.
    pub half_c: bool,
    /// Registers of D.
    pub d: Vec<R>,
    /// Registers of A.
    pub a: Vec<R>,
    /// Registers of B.
    pub b: Vec<R>,
    /// Registers of C.
    pub c: Vec<R>,
}

/// A load or a store.
#[derive(Debug, Clone)]
pub struct Access {
    /// Space.
    pub space: Space,
    /// Type of an element.
    pub ty: Ty,
    /// Elements: 1, 2 or 4.
    pub count: u8,
    /// The registers are 64-bit ones.
    pub long: bool,
    /// Bits of a narrow load's register: 16 or 32, else 64.
    pub register_bits: u8,
    /// Registers; a store's may be constants.
    pub regs: [R; 4],
    /// Address.
    pub addr: Addr,
    /// Ordering.
    pub order: crate::memory::Order,
    /// Scope.
    pub scope: crate::memory::Scope,
}

/// A comparison that sets predicates.
#[derive(Debug, Clone)]
pub struct Setp {
    /// Type.
    pub ty: Ty,
    /// Comparison.
    pub cmp: Cmp,
    /// Subnormals count as 0.
    pub ftz: bool,
    /// Operands.
    pub a: R,
    /// Operands.
    pub b: R,
    /// The result.
    pub p: R,
    /// The result of the negated comparison, or [`NONE`].
    pub q: R,
    /// Combined with this predicate, perhaps negated.
    pub combine: Option<(PredOp, R, bool)>,
}

/// A conversion.
#[derive(Debug, Clone)]
pub struct Cvt {
    /// To this type.
    pub to: Ty,
    /// From this type.
    pub from: Ty,
    /// Rounding, or `None` where the text names none.
    pub round: Option<Round>,
    /// Float to float, rounded to an integer (`.rni` and its kin).
    pub integer: bool,
    /// Clamps to 0..1, or to the integer's range.
    pub sat: bool,
    /// Subnormals become 0.
    pub ftz: bool,
    /// Negative becomes 0.
    pub relu: bool,
    /// The destination is a 64-bit register.
    pub long_d: bool,
    /// The source is a 64-bit register.
    pub long_a: bool,
    /// Bits of a 32-bit destination register: 16 or 32.
    pub register_bits: u8,
    /// Destination.
    pub d: R,
    /// Source.
    pub a: R,
}

/// What an instruction does. Registers are `d` for destinations, `a`, `b`, `c`, `e` for sources.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "named as PTX names them")]
pub enum Op {
    /// Not known: why.
    Unknown(Box<str>),
    /// Known and without effect here.
    Nop,
    Mov {
        d: R,
        a: R,
    },
    MovLong {
        d: R,
        a: R,
    },
    /// Integers of 32 bits and fewer.
    Int {
        f: IntOp,
        narrow: Narrow,
        d: R,
        a: R,
        b: R,
        c: R,
    },
    /// Integers of 64 bits.
    Long {
        f: IntOp,
        d: R,
        a: R,
        b: R,
        c: R,
    },
    Mix {
        f: MixOp,
        d: R,
        a: R,
        b: R,
        c: R,
    },
    Lop3 {
        table: u8,
        d: R,
        a: R,
        b: R,
        c: R,
    },
    Bfi {
        long: bool,
        d: R,
        a: R,
        b: R,
        c: R,
        e: R,
    },
    Dp4a {
        signed_a: bool,
        signed_b: bool,
        d: R,
        a: R,
        b: R,
        c: R,
    },
    /// `add.cc` and its kin: sum or difference of a (times b) and c; `reads` and `sets` the carry.
    Carry {
        long: bool,
        subtract: bool,
        reads: bool,
        sets: bool,
        d: R,
        a: R,
        b: R,
    },
    /// `mad.cc`: product's half, added to c.
    MadCarry {
        long: bool,
        high: bool,
        signed: bool,
        reads: bool,
        sets: bool,
        d: R,
        a: R,
        b: R,
        c: R,
    },
    F32 {
        f: FloatOp,
        round: Round,
        ftz: bool,
        sat: bool,
        d: R,
        a: R,
        b: R,
        c: R,
    },
    F64 {
        f: FloatOp,
        round: Round,
        d: R,
        a: R,
        b: R,
        c: R,
    },
    Half {
        f: FloatOp,
        bf16: bool,
        packed: bool,
        ftz: bool,
        sat: bool,
        relu: bool,
        d: R,
        a: R,
        b: R,
        c: R,
    },
    Testp {
        f: Testp,
        long: bool,
        p: R,
        a: R,
    },
    Cvt(Box<Cvt>),
    /// Two f32 to one packed register, a in the upper half.
    CvtPack {
        bf16: bool,
        round: Round,
        relu: bool,
        sat: bool,
        d: R,
        a: R,
        b: R,
    },
    Setp(Box<Setp>),
    /// `set`: these bits where the comparison holds; packed halves are compared apart.
    Set {
        test: Box<Setp>,
        yes: u32,
        packed: bool,
    },
    Selp {
        long: bool,
        d: R,
        a: R,
        b: R,
        p: R,
        not: bool,
    },
    Slct {
        long: bool,
        float: bool,
        ftz: bool,
        d: R,
        a: R,
        b: R,
        c: R,
    },
    Pred {
        f: PredOp,
        d: R,
        a: R,
        b: R,
    },
    /// A vector of `count` registers of `bits` to one.
    Pack {
        bits: u8,
        count: u8,
        long: bool,
        d: R,
        parts: [R; 4],
    },
    Unpack {
        bits: u8,
        count: u8,
        long: bool,
        a: R,
        parts: [R; 4],
    },
    Clock {
        long: bool,
        d: R,
    },
    Activemask {
        d: R,
    },
    Load(Box<Access>),
    Store(Box<Access>),
    Atom {
        space: Space,
        f: AtomOp,
        bytes: u8,
        d: R,
        addr: Addr,
        b: R,
        c: R,
        order: crate::memory::Order,
        scope: crate::memory::Scope,
    },
    CpAsync {
        to: Addr,
        from: Addr,
        bytes: u8,
        source: SourceBytes,
    },
    CommitGroup,
    WaitGroup {
        keep: u32,
        all: bool,
    },
    Fence {
        order: crate::memory::Order,
        scope: crate::memory::Scope,
    },
    Shfl {
        mode: ShflMode,
        d: R,
        p: R,
        a: R,
        b: R,
        c: R,
        mask: R,
    },
    Vote {
        mode: VoteMode,
        d: R,
        a: R,
        not: bool,
        mask: R,
    },
    Match {
        all: bool,
        long: bool,
        d: R,
        p: R,
        a: R,
        mask: R,
    },
    Redux {
        f: IntOp,
        d: R,
        a: R,
        mask: R,
    },
    Elect {
        d: R,
        p: R,
        mask: R,
    },
    WarpSync {
        mask: R,
    },
    Ldmatrix {
        count: u8,
        trans: bool,
        d: [R; 4],
        addr: Addr,
    },
    Movmatrix {
        d: R,
        a: R,
    },
    Mma(Box<Mma>),
    Barrier {
        mode: BarrierMode,
        aligned: bool,
        id: R,
        count: R,
        d: R,
        a: R,
        not: bool,
    },
    Bra {
        target: u32,
    },
    Brx {
        a: R,
        targets: Box<[u32]>,
    },
    Exit,
    Trap,
}
