/* SPDX-License-Identifier: Apache-2.0
 *
 * The first and only process of the guest: loads each program of /programs, says what the kernel made of it, powers off.
 *
 * A file of /programs: u32 number of maps, u32 number of instructions, then per map u32 type, key size, value size, entries,
 * flags, then the instructions, 8 bytes each. An instruction that loads a map's address names it by its place in the file.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAPS_MAX 32
#define LOG_BYTES (4 << 20)

static char file[1 << 20], log_text[LOG_BYTES];

static int bpf(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof(*attr));
}

static int create_map(const unsigned *shape)
{
	union bpf_attr attr = {};

	attr.map_type = shape[0];
	attr.key_size = shape[1];
	attr.value_size = shape[2];
	attr.max_entries = shape[3];
	attr.map_flags = shape[4];
	return bpf(BPF_MAP_CREATE, &attr);
}

static int load(const unsigned *words)
{
	unsigned maps = words[0], count = words[1];
	struct bpf_insn *code = (struct bpf_insn *)(words + 2 + 5 * maps);
	union bpf_attr attr = {};
	int fds[MAPS_MAX];

	for (unsigned i = 0; i < maps && i < MAPS_MAX; i++) {
		fds[i] = create_map(words + 2 + 5 * i);
		if (fds[i] < 0) {
			snprintf(log_text, LOG_BYTES, "map %u: %s", i, strerror(errno));
			return -1;
		}
	}
	for (unsigned i = 0; i < count; i++) {
		if (code[i].code != (BPF_LD | BPF_IMM | BPF_DW))
			continue;
		if (code[i].src_reg == BPF_PSEUDO_MAP_FD)
			code[i].imm = fds[code[i].imm];
		i++;
	}
	attr.prog_type = BPF_PROG_TYPE_SCHED_CLS;
	attr.insns = (unsigned long)code;
	attr.insn_cnt = count;
	attr.license = (unsigned long)"Apache-2.0";
	attr.log_buf = (unsigned long)log_text;
	attr.log_size = LOG_BYTES;
	attr.log_level = 4; /* the verifier's statistics */
	int fd = bpf(BPF_PROG_LOAD, &attr);
	if (fd < 0) {
		attr.log_level = 1; /* what it walked through until it refused */
		fd = bpf(BPF_PROG_LOAD, &attr);
	}
	return fd;
}

static void try_program(const char *name)
{
	char path[512];
	int fd, result;

	snprintf(path, sizeof(path), "/programs/%s", name);
	fd = open(path, O_RDONLY);
	if (fd < 0 || read(fd, file, sizeof(file)) <= 0) {
		printf("\nresult %s unreadable\n", name);
		return;
	}
	close(fd);
	log_text[0] = 0;
	result = load((unsigned *)file);
	printf("\nresult %s %s\n", name, result >= 0 ? "loaded" : "refused");
	size_t length = strlen(log_text);
	printf("%s\nend %s\n", log_text + (length > 3000 ? length - 3000 : 0), name);
}

int main(void)
{
	DIR *folder = opendir("/programs");
	struct dirent *entry;

	while (folder && (entry = readdir(folder)))
		if (entry->d_name[0] != '.')
			try_program(entry->d_name);
	printf("\ndone\n");
	fflush(stdout);
	reboot(RB_POWER_OFF);
	return 1;
}
