/* The one table of scalar operations of the kernel IR: MP_KOP(CODE, "name", arity, result, weight).
**
** `name` is what formulas (ops.c) and dumps call it. `result`: SAME as the first operand, or BOOL. `weight` is roughly its cost in
** additions (what is worth keeping rather than computing again). NaN goes through MIN and MAX as in ATen. */
MP_KOP(NEG, "neg", 1, SAME, 1)
MP_KOP(ABS, "abs", 1, SAME, 1)
MP_KOP(EXP, "exp", 1, SAME, 12)
MP_KOP(EXP2, "exp2", 1, SAME, 12)
MP_KOP(EXPM1, "expm1", 1, SAME, 16)
MP_KOP(LOG, "log", 1, SAME, 16)
MP_KOP(LOG2, "log2", 1, SAME, 16)
MP_KOP(LOG10, "log10", 1, SAME, 16)
MP_KOP(LOG1P, "log1p", 1, SAME, 24)
MP_KOP(SQRT, "sqrt", 1, SAME, 6)
MP_KOP(TANH, "tanh", 1, SAME, 24)
MP_KOP(ERF, "erf", 1, SAME, 30)
MP_KOP(NCDF, "ncdf", 1, SAME, 32) /* the normal distribution below x: (1 + erf(x / sqrt(2))) / 2 */
MP_KOP(SIN, "sin", 1, SAME, 40)
MP_KOP(COS, "cos", 1, SAME, 40)
MP_KOP(TAN, "tan", 1, SAME, 60)
MP_KOP(FLOOR, "floor", 1, SAME, 1)
MP_KOP(CEIL, "ceil", 1, SAME, 1)
MP_KOP(ROUND, "round", 1, SAME, 1)
MP_KOP(TRUNC, "trunc", 1, SAME, 1)
MP_KOP(SIGN, "sign", 1, SAME, 2)
MP_KOP(BITNOT, "bitnot", 1, SAME, 1)
MP_KOP(NOT, "not", 1, BOOL, 1)
MP_KOP(ISNAN, "isnan", 1, BOOL, 1)
MP_KOP(ADD, "add", 2, SAME, 1)
MP_KOP(SUB, "sub", 2, SAME, 1)
MP_KOP(MUL, "mul", 2, SAME, 1)
MP_KOP(DIV, "div", 2, SAME, 4)
MP_KOP(IDIV, "idiv", 2, SAME, 20)         /* integers, toward zero */
MP_KOP(FLOORDIV, "floordiv", 2, SAME, 40) /* toward minus infinity */
MP_KOP(FMOD, "fmod", 2, SAME, 40)
MP_KOP(REMAINDER, "remainder", 2, SAME, 40)
MP_KOP(MIN, "min", 2, SAME, 2)
MP_KOP(MAX, "max", 2, SAME, 2)
MP_KOP(POW, "pow", 2, SAME, 60)
MP_KOP(AND, "and", 2, SAME, 1)
MP_KOP(OR, "or", 2, SAME, 1)
MP_KOP(XOR, "xor", 2, SAME, 1)
MP_KOP(SHL, "shl", 2, SAME, 2) /* integers; as far as there are bits, or further: 0 */
MP_KOP(SHR, "shr", 2, SAME, 2) /* with the sign */
MP_KOP(LT, "lt", 2, BOOL, 1)
MP_KOP(LE, "le", 2, BOOL, 1)
MP_KOP(GT, "gt", 2, BOOL, 1)
MP_KOP(GE, "ge", 2, BOOL, 1)
MP_KOP(EQ, "eq", 2, BOOL, 1)
MP_KOP(NE, "ne", 2, BOOL, 1)
MP_KOP(WHERE, "where", 3, SAME, 1) /* condition (BOOL), then, else; the result has the type of the second */
