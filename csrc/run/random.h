/* Random: noise of dropout, drawn from torch's own generator of random numbers, a vector at a time.
**
** torch draws two words of its Mersenne twister for each element, one after the other. The numbers here are the same and the
** generator is left in the same state, its lock held meanwhile. Where the generator lies in memory otherwise than known, or torch draws
** otherwise (as with MKL on CPUs of Intel), that is found out before the first use, and torch's operator does the work.
*/
#ifndef MP_RUN_RANDOM_H
#define MP_RUN_RANDOM_H
#include "run/torch_abi.h"

/* Can mp_random_bernoulli stand for bernoulli of a contiguous float tensor? Asks magpy.random_ops once. GIL held; never fails. */
bool mp_random_usable(void);

/* Fill `out` (contiguous floats) with 1 where a number below `p` in [0, 1] was drawn from torch's default generator, else 0. `like`
** is not looked at. Has the form of torch's C ABI. Returns 0, or the error code of torch. Only if mp_random_usable. */
int mp_random_bernoulli(mp_handle out, mp_handle like, double p);

/* Python: _C.bernoulli(generator, tensor, p) -> bool: the same from any generator of a CPU into a contiguous float tensor; False, with
** nothing drawn, where the generator lies otherwise than known. */
PyObject *mp_random_py_bernoulli(PyObject *module, PyObject *args);

#endif
