/* The first process of an instance: starts the program, passes signals on, reaps, ends last.
 *
 *   kindling-init STOP-SIGNAL PROGRAM [ARGUMENT]...
 *
 * STOP-SIGNAL is a number: the image's STOPSIGNAL. It and TERM ask the instance to stop.
 *
 * - The program runs as a process group of its own, with no signal blocked or ignored. Every signal
 *   that can be passed on is sent to it, and to nobody else while it lives.
 *   A stop signal that ends nobody without a handler (CHLD, WINCH and the like) is TERM for a program
 *   that has none.
 * - It ends without a stop asked for: so does this, at once, with its status, 128 + n for a signal.
 *   The kernel kills what is left in the namespace then.
 * - It ends after a stop was asked for: whoever else still runs is sent that signal once, and this
 *   waits until all have ended. Who is born meanwhile is sent it when its parent has ended and not
 *   before: it may be what the parent needs to end well. How long that may take is for the outside
 *   to say, which then kills this.
 * - Not as root, this may hold CAP_KILL, to reach what has become another user (sudo). The program
 *   gets no capability of it. A thread holds it: the kernel lets nobody look into a process that has
 *   more than oneself, and programs write to /proc/1/fd/1, which shows the thread that has none.
 * - It cannot be executed: a line on standard error, status 127 when a file is missing, else 126.
 *
 * No libc and no allocation: a few pages per instance, one exec per start. Signals are never
 * handled but waited for, so nothing here runs beside anything else. Builds with tcc and gcc:
 * -nostdlib -static -ffreestanding; x86-64 Linux, kernel 5.11 and later.
 */

typedef unsigned long word;

/* asm/unistd_64.h */
enum {
  SYS_READ = 0, SYS_WRITE = 1, SYS_OPEN = 2, SYS_CLOSE = 3, SYS_RT_SIGACTION = 13,
  SYS_RT_SIGPROCMASK = 14, SYS_PAUSE = 34, SYS_CLONE = 56, SYS_EXECVE = 59, SYS_WAIT4 = 61,
  SYS_KILL = 62, SYS_GETUID = 102, SYS_SETPGID = 109, SYS_CAPSET = 126,
  SYS_RT_SIGTIMEDWAIT = 128, SYS_FUTEX = 202, SYS_GETDENTS64 = 217, SYS_EXIT_GROUP = 231
};

/* asm-generic/errno-base.h, signal.h, fcntl.h, wait.h, sched.h */
enum { ENOENT = 2, ENOEXEC = 8, ECHILD = 10, EACCES = 13, ENOTDIR = 20, ENAMETOOLONG = 36 };
enum { SIGHUP = 1, SIGTERM = 15, SIGCHLD = 17, LAST_SIGNAL = 64, SIGNAL_SET_BYTES = 8 };
enum { SIG_SETMASK = 2, WNOHANG = 1, O_DIRECTORY = 0200000, FUTEX_WAIT = 0, FUTEX_WAKE = 1 };

enum { PATH_BYTES = 4096, USAGE = 125, NOT_EXECUTABLE = 126, NOT_FOUND = 127, SIGNALLED = 128 };
enum { CAPABILITY_VERSION_3 = 0x20080522 };
enum { MOST_PIDS = 4 << 20 }; /* PID_MAX_LIMIT of linux/threads.h */
enum { STACK_BYTES = 16384 };
enum { SI_CODE = 2, SI_PID = 4, SI_USER = 0 }; /* asm-generic/siginfo.h, places in ints */

long syscall4(long number, word a, word b, word c, word d);
long spawn(void);
long beside(void *stack_end);
void child(void);
void serve(void);
void start(word *stack);

/* The kernel enters with the arguments on the stack (System V ABI, 3.4.1) and takes the fourth
 * argument of a call in r10, where functions have it in r8 here: the number comes first. */
__asm__(
  ".text\n"
  ".globl _start\n"
  "_start:\n"
  "  xor %rbp, %rbp\n"
  "  mov %rsp, %rdi\n"
  "  and $-16, %rsp\n"
  "  call start\n"
  ".globl syscall4\n"
  "syscall4:\n"
  "  mov %rdi, %rax\n"
  "  mov %rsi, %rdi\n"
  "  mov %rdx, %rsi\n"
  "  mov %rcx, %rdx\n"
  "  mov %r8, %r10\n"
  "  syscall\n"
  "  ret\n"
  /* clone(CLONE_VM | CLONE_VFORK | SIGCHLD): the child borrows our memory until it executes, and
   * stands on our stack, well below what we return through. */
  ".globl spawn\n"
  "spawn:\n"
  "  mov $0x4111, %rdi\n"
  "  lea -256(%rsp), %rsi\n"
  "  and $-16, %rsi\n"
  "  xor %rdx, %rdx\n"
  "  xor %r10, %r10\n"
  "  xor %r8, %r8\n"
  "  mov $56, %rax\n"
  "  syscall\n"
  "  test %rax, %rax\n"
  "  jne spawned\n"
  "  xor %rbp, %rbp\n"
  "  call child\n"
  "spawned:\n"
  "  ret\n"
  /* clone(CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM): a
   * thread, which serves and never returns. */
  ".globl beside\n"
  "beside:\n"
  "  mov %rdi, %rsi\n"
  "  and $-16, %rsi\n"
  "  mov $0x50f00, %rdi\n"
  "  xor %rdx, %rdx\n"
  "  xor %r10, %r10\n"
  "  xor %r8, %r8\n"
  "  mov $56, %rax\n"
  "  syscall\n"
  "  test %rax, %rax\n"
  "  jne made\n"
  "  xor %rbp, %rbp\n"
  "  call serve\n"
  "made:\n"
  "  ret\n"
);

/* A compiler may call these for copies it makes; it must not make them of themselves. */
void *memset(void *to, int byte, word size) {
  volatile char *at = to;
  while (size--) *at++ = (char)byte;
  return to;
}

void *memcpy(void *to, const void *from, word size) {
  volatile char *at = to;
  const char *source = from;
  while (size--) *at++ = *source++;
  return to;
}

static word length(const char *text) {
  word size = 0;
  while (text[size]) size++;
  return size;
}

/* Returns the number that text holds, -1 when it holds anything else or one above the limit. */
static long number_of(const char *text, long limit) {
  long value = 0;
  if (!*text) return -1;
  for (; *text; text++) {
    if (*text < '0' || *text > '9') return -1;
    value = value * 10 + (*text - '0');
    if (value > limit) return -1;
  }
  return value;
}

static void quit(int status) {
  for (;;) syscall4(SYS_EXIT_GROUP, (word)status, 0, 0, 0);
}

static void say(const char *text) { syscall4(SYS_WRITE, 2, (word)text, length(text), 0); }

/* Gives up all capabilities of this thread; ambient ones go with the others. */
static void drop(void) {
  unsigned int header[2] = {CAPABILITY_VERSION_3, 0}, sets[6] = {0, 0, 0, 0, 0, 0};
  syscall4(SYS_CAPSET, (word)header, (word)sets, 0, 0);
}

/* -- the program */

static char **program_argv, **program_env;
static volatile long exec_error; /* written by the child, in our memory */
static char path[PATH_BYTES];

static long attempt(const char *file, char **argv, char **env) {
  return syscall4(SYS_EXECVE, (word)file, (word)argv, (word)env, 0);
}

/* Executes argv[0], looked up along PATH like execvp(3) but for one thing: a file that is no program
 * is not given to a shell. Returns only the error, the one worth telling. */
static long execute(char **argv, char **env) {
  const char *name = argv[0], *search = "/usr/local/bin:/usr/bin:/bin";
  word size = length(name), n;
  long error, worst = -ENOENT;
  char **line;
  for (n = 0; n < size; n++)
    if (name[n] == '/') return attempt(name, argv, env);
  if (!size) return -ENOENT;
  for (line = env; *line; line++) {
    const char *at = *line;
    if (at[0] == 'P' && at[1] == 'A' && at[2] == 'T' && at[3] == 'H' && at[4] == '=')
      search = at + 5;
  }
  for (;;) {
    word width = 0;
    while (search[width] && search[width] != ':') width++;
    if (width + size + 2 <= PATH_BYTES) {
      memcpy(path, search, width);
      if (width) path[width++] = '/';
      memcpy(path + width, name, size + 1);
      if (search[0] && search[0] != ':') width--;
      error = attempt(path, argv, env);
      if (error == -EACCES) worst = error;
      else if (error != -ENOENT && error != -ENOTDIR && error != -ENAMETOOLONG) return error;
    }
    if (!search[width]) return worst;
    search += width + 1;
  }
}

void child(void) {
  word none = 0, action[4] = {0, 0, 0, 0};
  int number;
  syscall4(SYS_SETPGID, 0, 0, 0, 0);
  /* Handlers end with the exec; what whoever made us had ignored would stay so. */
  for (number = SIGHUP; number <= LAST_SIGNAL; number++)
    syscall4(SYS_RT_SIGACTION, (word)number, (word)action, 0, SIGNAL_SET_BYTES);
  syscall4(SYS_RT_SIGPROCMASK, SIG_SETMASK, (word)&none, 0, SIGNAL_SET_BYTES);
  if (syscall4(SYS_GETUID, 0, 0, 0, 0)) drop();
  exec_error = execute(program_argv, program_env);
  quit(NOT_FOUND);
}

static void refuse(const char *name, long error) {
  say("kindling-init: cannot execute ");
  say(name);
  if (error == -ENOENT) say(": it, or the interpreter it asks for, does not exist\n");
  else if (error == -ENOTDIR) say(": a part of its path is no directory\n");
  else if (error == -EACCES) say(": permission denied\n");
  else if (error == -ENOEXEC) say(": exec format error\n");
  else say(": the kernel refuses it\n");
  quit(error == -ENOENT || error == -ENOTDIR ? NOT_FOUND : NOT_EXECUTABLE);
}

/* -- the others, once the program has ended */

static unsigned char told[MOST_PIDS / 8]; /* pages that nobody touches take no memory */
static char names[4096], status[4096];

/* Returns what follows a label in /proc/PID/status, 0 when there is no such line. */
static const char *line_of(const char *label) {
  const char *at = status;
  while (*at) {
    word n = 0;
    while (label[n] && at[n] == label[n]) n++;
    if (!label[n]) return at + n;
    while (*at && *at != '\n') at++;
    if (*at) at++;
  }
  return 0;
}

static int read_status(long pid) {
  char name[32];
  long fd, size, n = 20;
  memcpy(name, "/proc/", 6);
  memcpy(name + n, "/status", 8);
  for (; pid; pid /= 10) name[--n] = (char)('0' + pid % 10);
  memcpy(name + 6, name + n, (word)(28 - n));
  fd = syscall4(SYS_OPEN, (word)name, 0, 0, 0);
  if (fd < 0) return 0;
  size = syscall4(SYS_READ, (word)fd, (word)status, sizeof status - 1, 0);
  syscall4(SYS_CLOSE, (word)fd, 0, 0, 0);
  status[size > 0 ? size : 0] = 0;
  return size > 0;
}

static int is_ours(void) {
  const char *parent = line_of("PPid:\t");
  return parent && parent[0] == '1' && parent[1] == '\n';
}

/* Says whether a process has a handler for a signal: 16 hexadecimal digits, the lowest bit last. */
static int catches(int number) {
  const char *set = line_of("SigCgt:\t");
  int digit;
  if (!set) return 0;
  digit = set[15 - (number - 1) / 4];
  digit = digit >= 'a' ? digit - 'a' + 10 : digit - '0';
  return digit >> (number - 1) % 4 & 1;
}

/* Sends the stop signal to who has not been sent it: to all, or to our own children alone. Who does
 * not handle it gets TERM: shells let their background jobs ignore INT and QUIT, and a STOPSIGNAL
 * such as WINCH says nothing to anybody but the program. The kernel lists pids in rising order and
 * as they are, so who is born meanwhile comes later in the list. */
static void tell(int number, int all) {
  long fd = syscall4(SYS_OPEN, (word) "/proc", O_DIRECTORY, 0, 0);
  long size, pid;
  if (fd < 0) {
    if (all) syscall4(SYS_KILL, (word)-1, SIGTERM, 0, 0);
    return;
  }
  while ((size = syscall4(SYS_GETDENTS64, (word)fd, (word)names, sizeof names, 0)) > 0) {
    char *entry = names;
    for (; entry < names + size; entry += *(unsigned short *)(entry + 16)) {
      pid = number_of(entry + 19, MOST_PIDS - 1);
      if (pid < 2 || told[pid / 8] >> pid % 8 & 1 || !read_status(pid)) continue;
      if (!all && !is_ours()) continue;
      told[pid / 8] |= (unsigned char)(1 << pid % 8);
      syscall4(SYS_KILL, (word)pid, (word)(catches(number) ? number : SIGTERM), 0, 0);
    }
  }
  syscall4(SYS_CLOSE, (word)fd, 0, 0, 0);
}

/* -- the loop */

static long program;
static int result = -1; /* the program's status once it has ended */
static int asked;       /* the signal that asked the instance to stop */

static int status_of(int ended) {
  int number = ended & 127;
  return number ? SIGNALLED + number : ended >> 8 & 255;
}

/* Collects who has ended, and ends with the last, or with the program when no stop was asked for. */
static void reap(void) {
  int ended = 0, was_running = result < 0;
  long pid;
  while ((pid = syscall4(SYS_WAIT4, (word)-1, (word)&ended, WNOHANG, 0)) > 0) {
    if (pid == program && result < 0) result = status_of(ended);
    told[pid / 8] &= (unsigned char)~(1 << pid % 8);
  }
  if (result < 0) return;
  if (!asked || pid == -ECHILD) quit(result);
  tell(asked, was_running);
}

/* Sends a signal to the program, or to all once that has ended. */
static void pass(int number) {
  syscall4(SYS_KILL, (word)(result < 0 ? program : -1), (word)number, 0, 0);
}

/* Says whether a signal ends who has no handler for it (signal(7), the actions Ign, Cont and Stop).
 * It never is KILL or STOP, which nobody can wait for. */
static int ends(int number) {
  static const char harmless[] = {17, 18, 20, 21, 22, 23, 28}; /* CHLD CONT TSTP TTIN TTOU URG WINCH */
  word n = 0;
  while (n < sizeof harmless && harmless[n] != number) n++;
  return n == sizeof harmless;
}

/* Has the instance stop. A stop signal that would end nobody is TERM for a program without a handler
 * for it: the whole grace would pass, and then it would be killed. */
static void ask(int number) {
  asked = number;
  if (result < 0 && !ends(number) && read_status(program) && !catches(number)) number = SIGTERM;
  pass(number);
}

static const word every_signal = ~(word)0;
static long stop; /* the image's stop signal */
static char thread_stack[STACK_BYTES];
static volatile int apart, dropped; /* a thread serves; the first one has no capability any more */

void serve(void) {
  int info[32]; /* siginfo_t */
  while (apart && !dropped) syscall4(SYS_FUTEX, (word)&dropped, FUTEX_WAIT, 0, 0);
  program = spawn();
  if (program < 0) {
    say("kindling-init: cannot make a process for the program\n");
    quit(NOT_EXECUTABLE);
  }
  if (exec_error) refuse(program_argv[0], exec_error);
  for (;;) {
    long number = syscall4(SYS_RT_SIGTIMEDWAIT, (word)&every_signal, (word)info, 0, SIGNAL_SET_BYTES);
    int from_outside = info[SI_CODE] <= SI_USER && !info[SI_PID]; /* no child's end */
    if (number == SIGCHLD) reap();
    /* Only from outside, and who ends what takes too long: a program that is sent the same by one
     * of its own ends as it would without us. */
    if (from_outside && (number == stop || number == SIGTERM)) ask((int)number);
    else if (number > 0 && number != SIGCHLD) pass((int)number);
  }
}

void start(word *stack) {
  char **argv = (char **)(stack + 1);
  stop = stack[0] < 3 ? -1 : number_of(argv[1], LAST_SIGNAL);
  if (stop < 1) {
    say("usage: kindling-init STOP-SIGNAL PROGRAM [ARGUMENT]...\n");
    quit(USAGE);
  }
  program_argv = argv + 2;
  program_env = argv + stack[0] + 1;
  syscall4(SYS_RT_SIGPROCMASK, SIG_SETMASK, (word)&every_signal, 0, SIGNAL_SET_BYTES);
  if (syscall4(SYS_GETUID, 0, 0, 0, 0)) {
    apart = 1;
    if (beside(thread_stack + STACK_BYTES) > 0) {
      drop();
      dropped = 1;
      syscall4(SYS_FUTEX, (word)&dropped, FUTEX_WAKE, 1, 0);
      for (;;) syscall4(SYS_PAUSE, 0, 0, 0, 0); /* every signal is blocked */
    }
    apart = 0; /* no thread to be had: the one there is keeps it */
  }
  serve();
}
