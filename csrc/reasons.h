/* The one table of reasons: MP_REASON(CODE, "text"). Texts complete the sentence "not compiled: ...".
** Included several times with different MP_REASON; no include guard on purpose. Add rows to your room's section. */
MP_REASON(NONE, "no reason")
/* observe */
MP_REASON(TRACER_PRESENT, "another tracer (debugger, coverage) is installed")
MP_REASON(TRACER_REMOVED, "the program removed magpy's tracer while it was observed")
MP_REASON(TOO_DEEP, "the Python recursion is too deep to be observed")
MP_REASON(FOREIGN_FRAME, "a finalizer or signal handler ran while the program was observed")
MP_REASON(OPCODE, "an opcode is not understood")
/* trace */
MP_REASON(UNKNOWN_C_CALLABLE, "a C callable with unknown effects was called")
MP_REASON(UNKNOWN_OBJECT, "an object of unknown origin was used")
MP_REASON(UNKNOWN_TENSOR, "a tensor of unknown origin was used")
MP_REASON(DATA_READ, "the program looks at tensor data")
MP_REASON(ALIAS_WRITE, "a tensor was changed through an alias that is not observed")
MP_REASON(INPUT_METADATA_CHANGED, "an input's shape, strides or type was changed in place")
MP_REASON(USER_CODE_IN_TORCH_OP, "user code ran inside a torch operator")
MP_REASON(TORCH_STATE, "a torch mode is active that cannot be traced")
MP_REASON(EXTERNAL_ITERATOR, "an iterator or generator from outside the call was consumed")
MP_REASON(EFFECT, "an effect cannot be put off until the call is certain")
MP_REASON(EXCEPTION, "the call raised an exception")
MP_REASON(INTERNAL, "an internal check failed")
MP_REASON(NO_MEMORY, "out of memory")
/* guard */
MP_REASON(UNGUARDABLE, "a value that was read cannot be guarded")
/* mock */
MP_REASON(UNREBUILDABLE, "a result or written value cannot be rebuilt")
/* dispatch */
MP_REASON(TRACE_LIMIT, "the limit of traces for this callable is reached")
MP_REASON(DISABLED, "compilation is disabled")
MP_REASON(NO_TENSOR_OPS, "the call computes no tensors")
/* ir, fuse, codegen, run */
MP_REASON(LOWERING_FAILED, "the graph could not be lowered")
MP_REASON(OPERATOR, "an operator cannot be run by the plan")
MP_REASON(NO_COMPILER, "no working C compiler was found")
MP_REASON(COMPILE_FAILED, "the C compiler failed")
MP_REASON(RUN_FAILED, "a compiled run failed before commit")
