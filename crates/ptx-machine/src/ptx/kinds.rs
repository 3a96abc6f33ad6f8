//! What operands, types and operations there are, named as PTX names them.
/// Special registers whose value a thread keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Special {
    /// `%tid`, by axis.
    Tid(u8),
    /// `%ntid`, by axis.
    Ntid(u8),
    /// `%ctaid`, by axis.
    Ctaid(u8),
    /// `%nctaid`, by axis.
    Nctaid(u8),
    /// `%laneid`.
    LaneId,
    /// `%warpid`.
    WarpId,
    /// `%nwarpid`.
    Nwarpid,
    /// `%smid`: one block a multiprocessor.
    SmId,
    /// `%nsmid`.
    Nsmid,
    /// `WARP_SZ`.
    WarpSize,
    /// `%lanemask_eq`, `le`, `lt`, `ge`, `gt`.
    LaneMask(Cmp),
    /// `%dynamic_smem_size`.
    DynamicShared,
    /// `%total_smem_size`.
    TotalShared,
    /// `%gridid` and others that are 0.
    Zero,
}

/// Integer operations; 64-bit ones where both operands and the result are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as PTX names them")]
pub enum IntOp {
    Add,
    Sub,
    Mul,
    Mad,
    MulHiU,
    MulHiS,
    MadHiU,
    MadHiS,
    Mul24U,
    Mul24S,
    DivU,
    DivS,
    RemU,
    RemS,
    MinU,
    MinS,
    MaxU,
    MaxS,
    And,
    Or,
    Xor,
    Not,
    Cnot,
    Shl,
    ShrU,
    ShrS,
    Abs,
    Neg,
    SadU,
    SadS,
    ShfLWrap,
    ShfRWrap,
    ShfLClamp,
    ShfRClamp,
    BfeU,
    BfeS,
    Clz,
    Popc,
    Brev,
    BfindU,
    BfindS,
    BfindShiftU,
    BfindShiftS,
    Prmt,
    AddSatS,
    SubSatS,
    /// Both factors' lower 16 bits, sign-extended; then a sum.
    MadWideS16,
}

/// How a 16-bit integer operation reads its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Narrow {
    /// 32 bits.
    No,
    /// 16 bits, unsigned.
    U16,
    /// 16 bits, signed.
    S16,
}

/// Operations between 32-bit and 64-bit registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as PTX names them")]
pub enum MixOp {
    MulWideU,
    MulWideS,
    MadWideU,
    MadWideS,
    Shl,
    ShrU,
    ShrS,
    Clz,
    Popc,
    BfindU,
    BfindS,
    BfeU,
    BfeS,
    /// Long from word, zeros above.
    ExtendU,
    /// Long from word, sign above.
    ExtendS,
    /// Word from long.
    Truncate,
}

/// Floating-point operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as PTX names them")]
pub enum FloatOp {
    Add,
    Sub,
    Mul,
    Fma,
    Div,
    Min,
    Max,
    MinNan,
    MaxNan,
    Neg,
    Abs,
    Copysign,
    Rcp,
    Sqrt,
    Rsqrt,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
}

/// Rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// To nearest, ties to even.
    Nearest,
    /// To zero.
    Zero,
    /// To minus infinity.
    Down,
    /// To plus infinity.
    Up,
    /// To nearest, ties away from zero (`cvt.rna.tf32`).
    Away,
}

/// Comparisons; those ending in `u` are true for NaN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "named as PTX names them")]
pub enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

/// Types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as PTX names them")]
pub enum Ty {
    Pred,
    B8,
    U8,
    S8,
    B16,
    U16,
    S16,
    B32,
    U32,
    S32,
    B64,
    U64,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    Tf32,
    F32,
    F64,
}

/// Operations on predicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as PTX names them")]
pub enum PredOp {
    And,
    Or,
    Xor,
    Not,
    Mov,
}

/// State spaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as PTX names them")]
pub enum Space {
    Generic,
    Global,
    Shared,
    Param,
    Const,
    Local,
}

/// Atomic operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as PTX names them")]
pub enum AtomOp {
    Add,
    MinU,
    MinS,
    MaxU,
    MaxS,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
    AddF32,
    AddF64,
    AddF16,
    AddBf16,
    AddF16x2,
    AddBf16x2,
}

/// Modes of a shuffle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as PTX names them")]
pub enum ShflMode {
    Up,
    Down,
    Bfly,
    Idx,
}

/// Kinds of votes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as PTX names them")]
pub enum VoteMode {
    All,
    Any,
    Uni,
    Ballot,
}

/// Kinds of barriers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as PTX names them")]
pub enum BarrierMode {
    Sync,
    Arrive,
    RedPopc,
    RedAnd,
    RedOr,
}

/// Element types of a matrix operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as PTX names them")]
pub enum MmaTy {
    F16,
    Bf16,
    Tf32,
}

/// What `testp` asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as PTX names them")]
pub enum Testp {
    Finite,
    Infinite,
    Number,
    NotANumber,
    Normal,
    Subnormal,
}

impl Ty {
    /// The type of this name, as in an opcode without its dot.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "pred" => Self::Pred,
            "b8" => Self::B8,
            "u8" => Self::U8,
            "s8" => Self::S8,
            "b16" => Self::B16,
            "u16" => Self::U16,
            "s16" => Self::S16,
            "b32" => Self::B32,
            "u32" => Self::U32,
            "s32" => Self::S32,
            "b64" => Self::B64,
            "u64" => Self::U64,
            "s64" => Self::S64,
            "f16" => Self::F16,
            "f16x2" => Self::F16x2,
            "bf16" => Self::Bf16,
            "bf16x2" => Self::Bf16x2,
            "tf32" => Self::Tf32,
            "f32" => Self::F32,
            "f64" => Self::F64,
            _ => return None,
        })
    }

    /// Its bits; a predicate has none.
    pub const fn bits(self) -> u32 {
        match self {
            Self::Pred => 0,
            Self::B8 | Self::U8 | Self::S8 => 8,
            Self::B16 | Self::U16 | Self::S16 | Self::F16 | Self::Bf16 => 16,
            Self::B32 | Self::U32 | Self::S32 | Self::F16x2 | Self::Bf16x2 | Self::Tf32 | Self::F32 => 32,
            Self::B64 | Self::U64 | Self::S64 | Self::F64 => 64,
        }
    }

    /// Is it a signed integer?
    pub const fn signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }

    /// Is it a floating-point type?
    pub const fn float(self) -> bool {
        matches!(
            self,
            Self::F16 | Self::F16x2 | Self::Bf16 | Self::Bf16x2 | Self::Tf32 | Self::F32 | Self::F64
        )
    }
}

impl MmaTy {
    /// Its name in opcodes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Tf32 => "tf32",
        }
    }
}
