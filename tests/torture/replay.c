/* A substitute for libFuzzer that works with every compiler. The program runs the fuzz target on the input FILEs, then
 * on COUNT random mutations of these inputs. A mutation changes, deletes or duplicates bytes, or joins the start of an
 * input and the end of another input.
 *
 * replay SEED COUNT FILE...
 *
 * The program prints the number of inputs that it ran. The file `last-input` contains the last input after a crash.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SIZE_MAX_OF_INPUT = 8192, CHANGES_MAX = 8 };

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t size);

struct text {
    unsigned char bytes[SIZE_MAX_OF_INPUT];
    size_t size;
};

static struct text read_file(const char *path)
{
    struct text text = {.size = 0};
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        exit(2);
    }
    text.size = fread(text.bytes, 1, sizeof text.bytes, file);
    fclose(file);
    return text;
}

static void try(const struct text *text)
{
    FILE *file = fopen("last-input", "wb");
    if (file == NULL || fwrite(text->bytes, 1, text->size, file) != text->size || fclose(file) != 0) {
        perror("last-input");
        exit(2);
    }
    unsigned char *exact = malloc(text->size + (text->size == 0)); /* a block of the exact size, so that the sanitizer detects reads beyond its end */
    memcpy(exact, text->bytes, text->size);
    LLVMFuzzerTestOneInput(exact, text->size);
    free(exact);
}

static size_t below(size_t limit)
{
    return limit == 0 ? 0 : (size_t)random() % limit;
}

static void change(struct text *text, const struct text *other)
{
    static const unsigned char TELLING[] = {0, 1, 4, 15, 16, 127, 128, 255, 'r', '0', 'p', 's', '%'};
    size_t at = below(text->size), length = below(text->size - at);
    switch (below(5)) {
    case 0:
        if (text->size > 0)
            text->bytes[at] = (unsigned char)random();
        break;
    case 1:
        if (text->size > 0)
            text->bytes[at] = TELLING[below(sizeof TELLING)];
        break;
    case 2: /* delete bytes */
        memmove(text->bytes + at, text->bytes + at + length, text->size - at - length);
        text->size -= length;
        break;
    case 3: /* duplicate bytes */
        if (text->size + length <= sizeof text->bytes) {
            memmove(text->bytes + at + length, text->bytes + at, text->size - at);
            text->size += length;
        }
        break;
    default: /* join with the end of `other` */
        length = below(other->size + 1);
        if (at + length <= sizeof text->bytes) {
            memcpy(text->bytes + at, other->bytes + other->size - length, length);
            text->size = at + length;
        }
    }
}

int main(int count, char **words)
{
    if (count < 4)
        return 2;
    srandom((unsigned)strtoul(words[1], NULL, 10));
    size_t made = strtoul(words[2], NULL, 10), files = (size_t)count - 3;
    struct text *kept = calloc(files, sizeof *kept);
    for (size_t i = 0; i < files; i++) {
        kept[i] = read_file(words[3 + i]);
        try(&kept[i]);
    }
    for (size_t i = 0; i < made; i++) {
        struct text text = kept[below(files)];
        for (size_t changes = 1 + below(CHANGES_MAX); changes > 0; changes--)
            change(&text, &kept[below(files)]);
        try(&text);
    }
    free(kept);
    printf("%zu\n", files + made);
    return 0;
}
